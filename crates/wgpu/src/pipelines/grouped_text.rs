//! The text of the matmuls of many experts.

use swiglu_core::Float;

use super::grouped::{
    FEW_PAIRS, FEW_SUBGROUPS, GroupedKernel, GroupedKind, Half, ROWS_OF, RowShare, TILES,
};
use super::matmul::{LANES, LaneSums, ROWS, Tier};
use super::matmul_text::{self, GEMV_ANY, OPERANDS, TILED};
use super::shader::{
    ELEMENT, FUNCTIONS_TEXT, NUMERIC, OP, OPERATION, Shader, activation_constants, repeated,
};

pub(super) const GROUPED_CALL: &str = include_str!("../shaders/grouped_call.wgsl");
const GROUPED_ACTIVATION: &str = include_str!("../shaders/grouped_activation.wgsl");
const GROUPED_PLAIN: &str = include_str!("../shaders/grouped_plain.wgsl");
const GROUPED_STORE: &str = include_str!("../shaders/grouped_store.wgsl");
const GROUPED_ITEMS: &str = include_str!("../shaders/grouped_items.wgsl");
const GROUPED_ROW: &str = include_str!("../shaders/grouped_row.wgsl");
const REDUCE_FOUR_SUBGROUP: &str = include_str!("../shaders/reduce_four_subgroup.wgsl");
const REDUCE_FOUR_WORKGROUP: &str = include_str!("../shaders/reduce_four_workgroup.wgsl");
const GROUPED_GEMV: &str = include_str!("../shaders/grouped_gemv.wgsl");
const GROUPED_ANY: &str = include_str!("../shaders/grouped_any.wgsl");
const GROUPED_TILES: &str = include_str!("../shaders/grouped_tiles.wgsl");

impl GroupedKernel {
    pub(super) fn shader(self, tier: Tier) -> Shader {
        match self.kind {
            GroupedKind::Cooperative(tile) => {
                let enabled = "enable f16;\nenable wgpu_cooperative_matrix;\n";
                self.shader_of(tier, enabled, &tile.text())
            }
            _ => self.shader_of(tier, "", ""),
        }
    }

    /// With the text of a kernel on cooperative matrices, where it is one, and what that has to enable.
    fn shader_of(self, tier: Tier, enabled: &str, cooperative: &str) -> Shader {
        let gated = self.half == Half::GateUp;
        let tiled = matches!(self.kind, GroupedKind::Tiles | GroupedKind::Cooperative(_));
        let list = u32::from(tiled);
        let flags = format!(
            "const GATED: bool = {gated};\nconst LIST: u32 = {list}u;\nconst OUTPUTS: u32 = {}u;\n",
            self.outputs(RowShare::new(0, 0))
        );
        let mut own = match self.kind {
            GroupedKind::Any | GroupedKind::Tiles => vec![GROUPED_STORE],
            _ => Vec::new(),
        };
        let mut constants = match self.kind {
            GroupedKind::Any => matmul_text::constants((self.weight, None), false, tier),
            GroupedKind::Cooperative(_) => Vec::new(),
            _ => matmul_text::constants((self.weight, Some(Float::BF16)), true, tier),
        };
        if gated {
            own.extend([FUNCTIONS_TEXT, OPERATION, GROUPED_ACTIVATION]);
            constants.extend(activation_constants(Float::BF16, false));
        } else {
            own.push(GROUPED_PLAIN);
        }
        // Rows of the item at a time.
        let gemv = |rows| {
            let pairs = format!("const PAIRS: u32 = {FEW_PAIRS}u;\n");
            let text =
                matmul_text::usual_gemv(rows, only_present) + &repeated("#t", rows, GROUPED_GEMV);
            matmul_text::gemv_own(FEW_SUBGROUPS, tier, &[&pairs, &text])
        };
        let (entry, text) = match self.kind {
            GroupedKind::Row => ("grouped_row", row_text(gated, tier)),
            GroupedKind::One => ("grouped_gemv", gemv(1)),
            GroupedKind::Eight => ("grouped_gemv", gemv(2)),
            GroupedKind::Any => (
                "grouped_any",
                matmul_text::gemv_own(ROWS, tier, &[GEMV_ANY]),
            ),
            GroupedKind::Tiles => (
                "grouped_tiles",
                matmul_text::tile_constants(tier, TILES) + &[OPERANDS, TILED].concat(),
            ),
            GroupedKind::Cooperative(_) => ("grouped_cooperative", cooperative.to_owned()),
        };
        own.push(match self.kind {
            GroupedKind::Any => GROUPED_ANY,
            GroupedKind::Tiles => GROUPED_TILES,
            _ => "",
        });
        let items = match self.kind {
            GroupedKind::Row => "",
            _ => GROUPED_ITEMS,
        };
        let shared = [NUMERIC, ELEMENT, OP, GROUPED_CALL, items].concat();
        let source = enabled.to_owned() + &flags + &shared + &text + &own.concat();
        let source = if tiled || self.kind == GroupedKind::Row {
            source
        } else {
            matmul_text::told_of_lanes(source, tier)
        };
        Shader {
            source,
            entry,
            constants,
            checked: false,
        }
    }
}

#[cfg(test)]
impl GroupedKernel {
    /// The kernel without cooperative matrices, of one that is on them.
    pub(crate) fn stand_in(self, tier: Tier) -> Option<Shader> {
        use super::cooperative_tiles::{STAND_IN, STANDING_IN};
        match self.kind {
            GroupedKind::Cooperative(tile) => {
                let text = tile.text_on(STAND_IN, STANDING_IN);
                Some(self.shader_of(tier, "enable f16;\n", &text))
            }
            _ => None,
        }
    }
}

/// The text of the kernel for one row.
fn row_text(gated: bool, tier: Tier) -> String {
    let reduce = match tier.sums {
        LaneSums::Subgroup => REDUCE_FOUR_SUBGROUP,
        LaneSums::AnySubgroup | LaneSums::Workgroup => REDUCE_FOUR_WORKGROUP,
    };
    let constants = [
        ("LANES", LANES),
        ("ROWS_OF", ROWS_OF),
        ("COLUMN_ROWS", 1 + u32::from(gated)),
        ("BUFFERS", tier.expert_buffers),
    ];
    let row = GROUPED_ROW
        .replace("#buffers\n", &expert_buffers(tier.expert_buffers))
        .replace("#cases\n", &load_cases(tier.expert_buffers));
    matmul_text::told(&constants) + &[OPERANDS, reduce, &row].concat()
}

/// The first is bound where other kernels have theirs, further ones behind all else.
fn expert_buffers(count: u32) -> String {
    let buffer = |n: u32| {
        let codes = if n == 0 { 1 } else { 5 + 2 * n };
        let scales = codes + 1;
        format!(
            "@group(0) @binding({codes}) var<storage, read> codes{n}: array<vec4<u32>>;\n\
             @group(0) @binding({scales}) var<storage, read> bytes{n}: array<u32>;\n"
        )
    };
    (0..count).map(buffer).collect()
}

/// The loads from each of the buffers.
fn load_cases(count: u32) -> String {
    let vectors = |from: String, at| ["x", "y", "z", "w"].map(|i| format!("{from}[{at}.{i}]"));
    let case = |n: u32| {
        let when = if n == 0 {
            "default".to_owned()
        } else {
            format!("case {n}u")
        };
        let codes = vectors(format!("codes{n}"), "at").join(", ");
        let bytes = vectors(format!("bytes{n}"), "word").join(", ");
        format!("        {when}: {{ return Four({codes}, vec4({bytes})); }}\n")
    };
    (0..count).rev().map(case).collect()
}

/// The text of a GEMV that leaves out rows which an item does not have.
fn only_present(gemv: &str) -> String {
    let line = |line: &str| match line.contains("grown.s#t +=") {
        true => format!("if #tu == 0u || #tu < present {{ {line} }}\n"),
        false => format!("{line}\n"),
    };
    gemv.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_term_of_a_row_that_may_be_missing_is_asked_for() {
        let text = only_present(include_str!("../shaders/gemv.wgsl"));
        let terms = text.matches("grown.s#t +=").count();
        assert_eq!((terms, text.matches("#tu < present").count()), (4, 4));
    }
}
