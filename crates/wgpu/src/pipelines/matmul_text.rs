//! The matmuls' text and constants.

use swiglu_core::Float;

use super::matmul::{
    DeviceFormat, GATED_ROWS, GatedKernel, GemvKind, GemvTokens, LANES, LaneSums, ROWS, Tier,
    TileKind,
};
use super::shader::{
    ACTIVATION_NATIVE, ACTIVATION_QUICK, ELEMENT, FUNCTIONS_TEXT, NUMERIC, OP, OPERATION, Shader,
    activation_constants, flag, repeated,
};
use crate::launch::float_code;

pub(super) const CALL: &str = include_str!("../shaders/matmul_call.wgsl");
pub(super) const OPERANDS: &str = include_str!("../shaders/matmul_operands.wgsl");
const GEMV: &str = include_str!("../shaders/gemv.wgsl");
const GEMV_STORE: &str = include_str!("../shaders/gemv_store.wgsl");
const GEMV_GATED: &str = include_str!("../shaders/gemv_gated.wgsl");
pub(super) const GEMV_ANY: &str = include_str!("../shaders/gemv_any.wgsl");
const GEMV_ANY_STORE: &str = include_str!("../shaders/gemv_any_store.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("../shaders/reduce_subgroup.wgsl");
const REDUCE_ANY_SUBGROUP: &str = include_str!("../shaders/reduce_any_subgroup.wgsl");
const REDUCE_WORKGROUP: &str = include_str!("../shaders/reduce_workgroup.wgsl");
pub(super) const TILED: &str = include_str!("../shaders/matmul_tiles.wgsl");
const TILED_STORE: &str = include_str!("../shaders/matmul_tiles_store.wgsl");

/// The end of a kernel's arguments, and what it becomes where the kernel is told of its subgroup.
const LAST_ARGUMENT: &str = "    @builtin(local_invocation_index) local: u32,\n) {\n";
const LANES_ARGUMENT: &str = "    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_size) size: u32,
) {
    subgroup_lanes = size;
";

/// The shaders' number for a type that the call tells.
const ANY: u32 = 255;

pub(super) fn constants(
    (weight, x): (DeviceFormat, Option<Float>),
    aligned: bool,
    tier: Tier,
) -> Vec<(&'static str, f64)> {
    vec![
        ("X_FLOAT", f64::from(x.map_or(ANY, float_code))),
        ("WEIGHT", f64::from(weight.code())),
        ("QUADS", (weight.per_vector() / 4) as f64),
        ("ALIGNED", flag(aligned)),
        ("E4M3_AS_F16", flag(tier.e4m3_as_f16)),
    ]
}

/// Constants as text.
pub(super) fn told(constants: &[(&str, u32)]) -> String {
    let line = |(name, value): &(&str, u32)| format!("const {name}: u32 = {value}u;\n");
    constants.iter().map(line).collect()
}

/// The text of a matmul: its constants, what all share, and its own parts.
pub(super) fn text(constants: &[(&str, u32)], own: &[&str]) -> String {
    told(constants) + &[NUMERIC, ELEMENT, OP, CALL].concat() + &own.concat()
}

/// A GEMV whose workgroups have [`LANES`] invocations for each of `rows`: all but its call.
pub(super) fn gemv_own(rows: u32, tier: Tier, own: &[&str]) -> String {
    let reduce = match tier.sums {
        LaneSums::Subgroup => REDUCE_SUBGROUP,
        LaneSums::AnySubgroup => REDUCE_ANY_SUBGROUP,
        LaneSums::Workgroup => REDUCE_WORKGROUP,
    };
    told(&[("LANES", LANES), ("ROWS", rows)]) + OPERANDS + reduce + &own.concat()
}

/// The text of a GEMV, whose kernel learns how many lanes its subgroup has where sums depend on it.
pub(super) fn told_of_lanes(text: String, tier: Tier) -> String {
    match tier.sums {
        LaneSums::AnySubgroup => text.replace(LAST_ARGUMENT, LANES_ARGUMENT),
        LaneSums::Subgroup | LaneSums::Workgroup => text,
    }
}

fn gemv_text(rows: u32, tier: Tier, own: &[&str]) -> String {
    told_of_lanes(text(&[], &[&gemv_own(rows, tier, own)]), tier)
}

/// What GEMVs of up to so many tokens of the usual type share, with `edit` made to it before it is there for each
/// token.
pub(super) fn usual_gemv(tokens: u32, edit: fn(&str) -> String) -> String {
    told(&[("TOKENS", tokens)]) + &repeated("#t", tokens, &edit(GEMV))
}

/// A GEMV of them.
fn usual_gemv_text(rows: u32, tier: Tier, tokens: GemvTokens, own: &[&str]) -> String {
    let shared = usual_gemv(tokens.count(), str::to_owned);
    gemv_text(rows, tier, &[&[shared.as_str()], own].concat())
}

/// The constants of tiles.
pub(super) fn tile_constants(tier: Tier, kind: TileKind) -> String {
    told(&[
        ("TILE", kind.side()),
        ("DEPTH", kind.depth()),
        ("BUFFERS", 1 + u32::from(tier.two_buffers)),
    ])
}

/// A GEMV.
pub(super) fn gemv(tier: Tier, weight: DeviceFormat, kind: GemvKind) -> Shader {
    let (entry, source, x, aligned) = match kind {
        GemvKind::Usual(tokens) => (
            "gemv",
            usual_gemv_text(ROWS, tier, tokens, &[GEMV_STORE]),
            Some(weight.usual_x()),
            true,
        ),
        GemvKind::Any { aligned } => (
            "gemv_any",
            gemv_text(ROWS, tier, &[GEMV_ANY, GEMV_ANY_STORE]),
            None,
            aligned,
        ),
    };
    Shader {
        source,
        entry,
        constants: constants((weight, x), aligned, tier),
        checked: false,
    }
}

/// A GEMV that also activates.
pub(super) fn gated(tier: Tier, kernel: GatedKernel) -> Shader {
    let own = [
        FUNCTIONS_TEXT,
        OPERATION,
        ACTIVATION_QUICK,
        ACTIVATION_NATIVE,
        GEMV_GATED,
    ];
    let weight = kernel.weight.format();
    let x = weight.usual_x();
    let mut constants = constants((weight, Some(x)), true, tier);
    constants.extend(activation_constants(x, true));
    Shader {
        source: usual_gemv_text(GATED_ROWS, tier, kernel.tokens, &own),
        entry: "gemv_gated",
        constants,
        checked: false,
    }
}

/// A tiled kernel.
pub(super) fn tiles(tier: Tier, weight: DeviceFormat, kind: TileKind) -> Shader {
    let (x, aligned) = match kind {
        TileKind::Small { aligned } => (None, aligned),
        TileKind::Large => (Some(weight.usual_x()), true),
    };
    Shader {
        source: text(
            &[],
            &[&tile_constants(tier, kind), OPERANDS, TILED, TILED_STORE],
        ),
        entry: "matmul_tiles",
        constants: constants((weight, x), aligned, tier),
        checked: false,
    }
}
