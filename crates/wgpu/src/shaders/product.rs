//! The products' text and constants.

use swiglu_core::DType;

use super::{
    ACTIVATION_NATIVE, ACTIVATION_QUICK, ELEMENT, NUMERIC, OP, OPERATION, Shader,
    activation_constants, dtype_code, flag,
};

const PRODUCT_CALL: &str = include_str!("product_call.wgsl");
const PRODUCT: &str = include_str!("product.wgsl");
const PRODUCT_ROWS: &str = include_str!("product_rows.wgsl");
const PRODUCT_ROW: &str = include_str!("product_row.wgsl");
const PRODUCT_ROW_PLAIN: &str = include_str!("product_row_plain.wgsl");
const PRODUCT_ROW_GATED: &str = include_str!("product_row_gated.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("reduce_subgroup.wgsl");
const REDUCE_WORKGROUP: &str = include_str!("reduce_workgroup.wgsl");
const PRODUCT_TILES: &str = include_str!("product_tiles.wgsl");
const PRODUCT_COOPERATIVE: &str = include_str!("product_cooperative.wgsl");

/// The types of weights that products read.
pub(crate) const WEIGHTS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

/// Lanes that share a row of the weight in a matrix-vector kernel.
pub(crate) const LANES: u32 = 32;

/// Rows of the weight in a workgroup of a matrix-vector kernel.
pub(crate) const ROWS: u32 = 4;

/// Rows of the weight in a workgroup that also activates: a vector of gates and one of ups.
const GATED_ROWS: u32 = 16;

/// Invocations in a workgroup that also activates.
pub(crate) const GATED_INVOCATIONS: u32 = LANES * GATED_ROWS;

/// The tiles' side in tokens and rows of the weight.
pub(crate) const TILES: [u32; 2] = [64, 128];

/// Elements of a row that a tile takes at a time.
pub(crate) const TILE_DEPTH: [u32; 2] = [16, 8];

/// Bytes of a workgroup's memory that tiles kept twice take: those of either size, whose lines are a
/// vector longer than the tile.
pub(crate) const TWO_BUFFERS: u32 = {
    const fn bytes(size: usize) -> u32 {
        2 * 2 * 4 * (TILES[size] + 4) * TILE_DEPTH[size]
    }
    if bytes(0) > bytes(1) {
        bytes(0)
    } else {
        bytes(1)
    }
};

/// Which kernels are built, where there is a choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tier {
    /// Sums over lanes by subgroup operations.
    pub(crate) subgroups: bool,
    /// E4M3 decoded as f16.
    pub(crate) e4m3_as_f16: bool,
    /// Tiles kept twice in a workgroup's memory.
    pub(crate) two_buffers: bool,
}

/// The type of x that kernels for few tokens and large tiles are made for.
pub(crate) fn usual_x(weight: DType) -> DType {
    match weight {
        DType::F8E4M3 | DType::E8M0 => DType::BF16,
        other => other,
    }
}

/// The shaders' number for a type that the call tells.
const ANY: u32 = 255;

fn product_constants(
    (weight, x): (DType, Option<DType>),
    aligned: bool,
    tier: Tier,
) -> Vec<(&'static str, f64)> {
    vec![
        ("X_DTYPE", f64::from(x.map_or(ANY, dtype_code))),
        ("WEIGHT", f64::from(dtype_code(weight))),
        ("QUADS", (4 / weight.size()) as f64),
        ("ALIGNED", flag(aligned)),
        ("E4M3_AS_F16", flag(tier.e4m3_as_f16)),
    ]
}

/// The text with its lines that contain `#t` so many times, numbered there.
fn repeated(count: u32, text: &str) -> String {
    let mut all = String::new();
    for line in text.split_inclusive('\n') {
        let times = if line.contains("#t") { count } else { 1 };
        all.extend((0..times).map(|t| line.replace("#t", &t.to_string())));
    }
    all
}

/// The matrix-vector kernels of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowKind {
    /// For up to so many tokens of the usual type in whole vectors.
    Usual(u32),
    /// For up to [`ANY_TOKENS`] of any type.
    Any { aligned: bool },
}

/// The numbers of tokens that matrix-vector kernels of the usual type are made for.
pub(crate) const USUAL_TOKENS: [u32; 3] = [1, 4, 8];

/// The most tokens of any type at a time.
pub(crate) const ANY_TOKENS: u32 = 4;

/// The matrix-vector kernels that there are of a weight.
pub(crate) const ROW_KINDS: [RowKind; 5] = [
    RowKind::Usual(USUAL_TOKENS[0]),
    RowKind::Usual(USUAL_TOKENS[1]),
    RowKind::Usual(USUAL_TOKENS[2]),
    RowKind::Any { aligned: true },
    RowKind::Any { aligned: false },
];

/// The text of a product: its constants, what all share, and its own parts.
fn text(constants: &[(&str, u32)], own: &[&str]) -> String {
    let constants: String = constants
        .iter()
        .map(|(name, value)| format!("const {name}: u32 = {value}u;\n"))
        .collect();
    constants + &[NUMERIC, ELEMENT, OP, PRODUCT_CALL].concat() + &own.concat()
}

/// The text of a matrix-vector kernel whose workgroups have [`LANES`] invocations for each of `rows`.
fn row_text(rows: u32, tier: Tier, own: &[&str]) -> String {
    let reduce = if tier.subgroups {
        REDUCE_SUBGROUP
    } else {
        REDUCE_WORKGROUP
    };
    let own = [&[PRODUCT, reduce], own].concat();
    text(&[("LANES", LANES), ("ROWS", rows)], &own)
}

/// The same for up to so many tokens of the usual type.
fn usual_row_text(rows: u32, tier: Tier, tokens: u32, own: &[&str]) -> String {
    let count = format!("const TOKENS: u32 = {tokens}u;\n");
    let of_tokens = repeated(tokens, PRODUCT_ROW);
    row_text(rows, tier, &[&[&count, of_tokens.as_str()], own].concat())
}

/// By weight type and [`ROW_KINDS`].
pub(crate) fn rows(tier: Tier) -> Vec<Shader> {
    let shader = |weight, kind| {
        let (entry, source, x, aligned) = match kind {
            RowKind::Usual(tokens) => (
                "product_row",
                usual_row_text(ROWS, tier, tokens, &[PRODUCT_ROW_PLAIN]),
                Some(usual_x(weight)),
                true,
            ),
            RowKind::Any { aligned } => (
                "product_rows",
                row_text(ROWS, tier, &[PRODUCT_ROWS]),
                None,
                aligned,
            ),
        };
        Shader {
            source,
            entry,
            constants: product_constants((weight, x), aligned, tier),
            checked: false,
        }
    };
    WEIGHTS
        .into_iter()
        .flat_map(|weight| ROW_KINDS.map(|kind| shader(weight, kind)))
        .collect()
}

/// The weights that have kernels which also activate: those whose x usually has 16 bits.
pub(crate) const GATED_WEIGHTS: [DType; 3] = [DType::F16, DType::BF16, DType::F8E4M3];

/// Few tokens and the native activation, by [`GATED_WEIGHTS`] and [`USUAL_TOKENS`].
pub(crate) fn gated(tier: Tier) -> Vec<Shader> {
    let own = [
        OPERATION,
        ACTIVATION_QUICK,
        ACTIVATION_NATIVE,
        PRODUCT_ROW_GATED,
    ];
    let shader = |weight, tokens| {
        let x = usual_x(weight);
        let mut constants = product_constants((weight, Some(x)), true, tier);
        constants.extend(activation_constants(x, true));
        Shader {
            source: usual_row_text(GATED_ROWS, tier, tokens, &own),
            entry: "product_gated",
            constants,
            checked: false,
        }
    };
    GATED_WEIGHTS
        .into_iter()
        .flat_map(|weight| USUAL_TOKENS.map(|tokens| shader(weight, tokens)))
        .collect()
}

/// The tiled kernels of a weight: the index in [`TILES`], and whether x is aligned. Large tiles
/// are for rows of whole depths only.
pub(crate) const TILE_KINDS: [(usize, bool); 3] = [(0, true), (1, true), (0, false)];

/// By weight type and [`TILE_KINDS`].
pub(crate) fn tiles(tier: Tier) -> Vec<Shader> {
    let shader = |weight, (size, aligned): (usize, bool)| Shader {
        source: text(
            &[
                ("TILE", TILES[size]),
                ("DEPTH", TILE_DEPTH[size]),
                ("BUFFERS", 1 + u32::from(tier.two_buffers)),
            ],
            &[PRODUCT, PRODUCT_TILES],
        ),
        entry: "product_tiles",
        constants: product_constants(
            (weight, (size == 1).then_some(usual_x(weight))),
            aligned,
            tier,
        ),
        checked: false,
    };
    WEIGHTS
        .into_iter()
        .flat_map(|weight| TILE_KINDS.map(|kind| shader(weight, kind)))
        .collect()
}

/// The tiles of f16 by f16 on cooperative matrices, for any rows or for dense ones of `k` elements.
pub(crate) fn cooperative(k: Option<u32>) -> Shader {
    Shader {
        source: "enable f16;\nenable wgpu_cooperative_matrix;\n".to_owned()
            + &text(&[], &[&repeated(COOPERATIVE_VECTORS, PRODUCT_COOPERATIVE)]),
        entry: "product_cooperative",
        constants: vec![("K", f64::from(k.unwrap_or(0)))],
        checked: false,
    }
}

/// The side of its tiles.
pub(crate) const COOPERATIVE_TILE: u32 = 128;

/// Elements of a row that it takes at a time.
pub(crate) const COOPERATIVE_DEPTH: u32 = 32;

/// Vectors of four that each of its 128 invocations brings of x, and of the weight, at a time.
const COOPERATIVE_VECTORS: u32 = COOPERATIVE_TILE * COOPERATIVE_DEPTH / 4 / 128;

/// Bytes of a workgroup's memory that it takes.
pub(crate) const COOPERATIVE_STORAGE: u32 = 2 * COOPERATIVE_TILE * 10 * 8 + 4 * 16 * 16 * 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tokens_are_repeated() {
        let text = "a\nb#t = #tu;\nc\n";
        assert_eq!(repeated(2, text), "a\nb0 = 0u;\nb1 = 1u;\nc\n");
    }
}
