//! Tiles of kernels on cooperative matrices: their sides, how subgroups share them, and the text that goes through them
//! step by step.

use super::matmul_text::told;
use super::shader::repeated;

pub(super) const MATRICES: &str = include_str!("../shaders/cooperative_matrices.wgsl");
const TILES: &str = include_str!("../shaders/cooperative_tiles.wgsl");
const PLACES: &str = include_str!("../shaders/cooperative_places.wgsl");
const STEPS: &str = include_str!("../shaders/cooperative_steps.wgsl");

/// Lanes of the subgroups that the kernels are made for.
pub(super) const LANES: u32 = 32;

/// The side of a matrix.
pub(super) const MATRIX: u32 = 16;

/// The tiles' sides, and how subgroups share them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CooperativeShape {
    pub(crate) tokens: u32,
    pub(crate) rows: u32,
    pub(crate) depth: u32,
    /// Subgroups along the tokens, along the rows, and along the columns of a step.
    pub(super) down: u32,
    pub(super) across: u32,
    pub(super) slices: u32,
}

/// How a kernel goes through the columns.
pub(super) struct Steps {
    /// Elements of the weight that an invocation loads at once.
    pub(super) raw: u32,
    /// Steps that are loaded ahead.
    pub(super) stages: u32,
    /// Whether columns are whole steps.
    pub(super) whole: bool,
}

impl CooperativeShape {
    pub(super) const fn invocations(&self) -> u32 {
        LANES * self.down * self.across * self.slices
    }

    /// Matrices of a subgroup along the tokens, and along the rows.
    pub(super) const fn matrices(&self) -> [u32; 2] {
        [
            self.tokens / MATRIX / self.down,
            self.rows / MATRIX / self.across,
        ]
    }

    pub(super) const fn workgroup_bytes(&self) -> u32 {
        let sides = self.tokens + self.rows;
        sides * (self.depth / 4 + 2) * 8 + self.invocations() * 8 * 4 + sides * 4
    }

    /// The text of a kernel on these tiles, with its constants and what it shares with others.
    pub(super) fn kernel(&self, kernel: &str, steps: &Steps, operations: Operations) -> String {
        let [down, across] = self.matrices();
        let invocations = self.invocations();
        let Steps { raw, stages, whole } = *steps;
        let constants = told(&[
            ("TILE_TOKENS", self.tokens),
            ("TILE_ROWS", self.rows),
            ("DEPTH", self.depth),
            ("INVOCATIONS", invocations),
            ("ACROSS", self.across),
            ("SLICES", self.slices),
            ("MATRICES_DOWN", down),
            ("MATRICES_ACROSS", across),
            ("RAW", raw),
            ("STAGES", stages),
        ]);
        let whole = format!("const WHOLE: bool = {whole};\n");
        let kernel = kernel.replace("#places\n", PLACES);
        let mut kernel = in_stages(&kernel.replace("#steps\n", STEPS), stages);
        for (marker, count) in [
            ("#x", self.tokens * self.depth / 4 / invocations),
            ("#w", self.rows * self.depth / raw / invocations),
            ("#i", down),
            ("#j", across),
        ] {
            kernel = repeated(marker, count, &kernel);
        }
        let kernel = kernel.replace("#multiply\n", &multiply(self, operations));
        constants + &whole + TILES + &kernel
    }
}

/// The text with what is between its lines `#begin` and `#end` so many times, each numbered at `#p`.
fn in_stages(text: &str, count: u32) -> String {
    let mut all = String::new();
    for (i, part) in text.split("#begin\n").enumerate() {
        match part.split_once("#end\n") {
            Some((inside, behind)) if i > 0 => {
                all.extend((0..count).map(|p| inside.replace("#p", &p.to_string())));
                all += behind;
            }
            _ => all += part,
        }
    }
    all
}

/// How tokens and rows are loaded from a place, and their products added: of cooperative matrices as they
/// are, because drivers do not keep in registers what functions take and give.
pub(super) type Operations = [&'static str; 3];

pub(super) const DIRECT: Operations = [
    "coopLoadT<coop_mat16x16<f16, A>>(&x_tile[PLACE], LINE)",
    "coopLoad<coop_mat16x16<f16, B>>(&w_tile[PLACE], LINE)",
    "coopMultiplyAdd(TOKENS, ROWS, SUMS)",
];

#[cfg(test)]
pub(super) const STAND_IN: &str = include_str!("../shaders/cooperative_stand_in.wgsl");

#[cfg(test)]
pub(super) const STANDING_IN: Operations = ["PLACE", "PLACE", "with_products(SUMS, TOKENS, ROWS)"];

/// What a subgroup does with a step.
fn multiply(shape: &CooperativeShape, [tokens, rows, products]: Operations) -> String {
    let [down, across] = shape.matrices();
    let mut all = String::new();
    for part in 0..shape.depth / shape.slices / MATRIX {
        let load = |name: String, how: &str, line: &str, n: u32| {
            let place = format!("{line} + {}u * LINE + {}u", n * MATRIX, part * 4);
            let how = how.replace("PLACE", &place);
            format!("            let {name} = {how};\n")
        };
        all += "        {\n";
        for i in 0..down {
            all += &load(format!("a{i}"), tokens, "x_line", i);
        }
        for j in 0..across {
            all += &load(format!("b{j}"), rows, "w_line", j);
            for i in 0..down {
                let sums = format!("c{i}{j}");
                let added = products
                    .replace("SUMS", &sums)
                    .replace("TOKENS", &format!("a{i}"))
                    .replace("ROWS", &format!("b{j}"));
                all += &format!("            {sums} = {added};\n");
            }
        }
        all += "        }\n";
    }
    all
}
