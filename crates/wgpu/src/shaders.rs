//! The shaders' text, and every combination of constants that it is compiled with.

use swiglu_core::DType;

const NUMERIC: &str = include_str!("shaders/numeric.wgsl");
const ELEMENT: &str = include_str!("shaders/element.wgsl");
const OPERATION: &str = include_str!("shaders/operation.wgsl");
const ACTIVATION: &str = include_str!("shaders/activation.wgsl");
const ACTIVATION_QUICK: &str = include_str!("shaders/activation_quick.wgsl");
const ACTIVATION_NATIVE: &str = include_str!("shaders/activation_native.wgsl");
const ACTIVATION_WORDS: &str = include_str!("shaders/activation_words.wgsl");
const ACTIVATION_VECTORS: &str = include_str!("shaders/activation_vectors.wgsl");
const QUANT_SCALES: &str = include_str!("shaders/quant_scales.wgsl");
const QUANT: &str = include_str!("shaders/quant.wgsl");
const QUANT_ACTIVATION: &str = include_str!("shaders/quant_activation.wgsl");
const QUANT_PLAIN: &str = include_str!("shaders/quant_plain.wgsl");
const DEQUANT: &str = include_str!("shaders/dequant.wgsl");
const PRODUCT_CALL: &str = include_str!("shaders/product_call.wgsl");
const PRODUCT: &str = include_str!("shaders/product.wgsl");
const PRODUCT_ROWS: &str = include_str!("shaders/product_rows.wgsl");
const PRODUCT_ROW: &str = include_str!("shaders/product_row.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("shaders/reduce_subgroup.wgsl");
const REDUCE_WORKGROUP: &str = include_str!("shaders/reduce_workgroup.wgsl");
const PRODUCT_TILES: &str = include_str!("shaders/product_tiles.wgsl");
const PRODUCT_COOPERATIVE: &str = include_str!("shaders/product_cooperative.wgsl");

/// The types of weights that products read.
pub(crate) const WEIGHTS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

/// Lanes that share a row of the weight in a matrix-vector kernel.
pub(crate) const LANES: u32 = 32;

/// Rows of the weight in a workgroup of a matrix-vector kernel.
pub(crate) const ROWS: u32 = 4;

/// The tiles' side in tokens and rows of the weight.
pub(crate) const TILES: [u32; 2] = [64, 128];

/// Elements of a row that a tile takes at a time.
const TILE_DEPTH: [u32; 2] = [16, 8];

/// Invocations in a workgroup that takes whole vectors.
pub(crate) const VECTOR_WORKGROUP: u32 = 128;

/// The kernels for activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActivationKind {
    /// Any place of the rows.
    Words,
    /// Whole vectors.
    Vectors,
    /// Whole vectors, with silu as the function.
    SiluVectors,
    /// Whole vectors of 16-bit elements through silu, by the device's own exp2 and division.
    NativeSilu,
}

/// The kernels for activations that there are.
pub(crate) fn activation_kinds() -> Vec<(DType, ActivationKind)> {
    let kinds = [
        ActivationKind::Words,
        ActivationKind::Vectors,
        ActivationKind::SiluVectors,
        ActivationKind::NativeSilu,
    ];
    let all = DType::COMPUTE
        .into_iter()
        .flat_map(|dtype| kinds.map(|kind| (dtype, kind)));
    all.filter(|&(dtype, kind)| kind != ActivationKind::NativeSilu || dtype.size() == 2)
        .collect()
}

/// One pipeline's text and constants.
#[derive(Clone, Debug)]
pub(crate) struct Shader {
    pub(crate) source: String,
    pub(crate) entry: &'static str,
    pub(crate) constants: Vec<(&'static str, f64)>,
    /// Whether every index and divisor follows from what the host has checked.
    pub(crate) in_bounds: bool,
}

/// The number that stands for a type in the shaders.
pub(crate) fn dtype_code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
        DType::F8E4M3 | DType::E8M0 => 3,
    }
}

fn activation_constants(dtype: DType, only_silu: bool) -> Vec<(&'static str, f64)> {
    vec![
        ("DTYPE", f64::from(dtype_code(dtype))),
        ("ONLY_SILU", f64::from(u8::from(only_silu))),
    ]
}

/// By [`activation_kinds`].
pub(crate) fn activations() -> Vec<Shader> {
    let vectors = [ACTIVATION_QUICK, ACTIVATION_NATIVE, ACTIVATION_VECTORS].concat();
    let shader = |(dtype, kind)| {
        let (entry, text) = match kind {
            ActivationKind::Words => ("activation_words", ACTIVATION_WORDS),
            ActivationKind::Vectors | ActivationKind::SiluVectors => {
                ("activation_vectors", vectors.as_str())
            }
            ActivationKind::NativeSilu => ("activation_native", vectors.as_str()),
        };
        let only_silu = matches!(
            kind,
            ActivationKind::SiluVectors | ActivationKind::NativeSilu
        );
        Shader {
            source: [NUMERIC, ELEMENT, OPERATION, ACTIVATION, text].concat(),
            entry,
            constants: activation_constants(dtype, only_silu),
            in_bounds: false,
        }
    };
    activation_kinds().into_iter().map(shader).collect()
}

/// The fused kernels by compute type, then the one that quantises a matrix of any type.
pub(crate) fn quantisations() -> Vec<Shader> {
    let shader = |dtype, elements: &[&str]| Shader {
        source: [NUMERIC, ELEMENT, OPERATION, ACTIVATION, QUANT_SCALES, QUANT].concat()
            + &elements.concat(),
        entry: "quantise",
        constants: activation_constants(dtype, false),
        in_bounds: false,
    };
    let fused = |dtype| {
        shader(
            dtype,
            &[ACTIVATION_QUICK, ACTIVATION_NATIVE, QUANT_ACTIVATION],
        )
    };
    let mut all: Vec<_> = DType::COMPUTE.into_iter().map(fused).collect();
    all.push(shader(DType::F32, &[QUANT_PLAIN]));
    all
}

/// Codes times scales, to any type.
pub(crate) fn dequantisation() -> Shader {
    Shader {
        source: [
            NUMERIC,
            ELEMENT,
            OPERATION,
            ACTIVATION,
            QUANT_SCALES,
            DEQUANT,
        ]
        .concat(),
        entry: "dequantise",
        constants: activation_constants(DType::F32, false),
        in_bounds: false,
    }
}

/// Bytes of a workgroup's memory that tiles kept twice take.
pub(crate) const TWO_BUFFERS: u32 = 2 * 2 * 4 * TILES[1] * TILE_DEPTH[1];

/// Which kernels are built, where there is a choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tier {
    /// Sums over lanes by subgroup operations.
    pub(crate) subgroups: bool,
    /// E4M3 decoded as f16.
    pub(crate) e4m3_as_f16: bool,
    /// Tiles kept twice in a workgroup's memory, 16 KiB in all.
    pub(crate) two_buffers: bool,
}

/// The type of x that kernels for one token and large tiles are made for.
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
    let flag = |on| f64::from(u8::from(on));
    vec![
        ("X_DTYPE", f64::from(x.map_or(ANY, dtype_code))),
        ("DTYPE", f64::from(dtype_code(weight))),
        ("QUADS", (4 / weight.size()) as f64),
        ("ALIGNED", flag(aligned)),
        ("E4M3_AS_F16", flag(tier.e4m3_as_f16)),
    ]
}

/// The matrix-vector kernels of a weight: the most tokens, and whether x is aligned.
pub(crate) const ROW_KINDS: [(u32, bool); 3] = [(1, true), (4, true), (4, false)];

/// The tiled kernels of a weight: the index in [`TILES`], and whether x is aligned.
pub(crate) const TILE_KINDS: [(usize, bool); 3] = [(0, true), (1, true), (0, false)];

/// By weight type and [`ROW_KINDS`].
pub(crate) fn rows(tier: Tier) -> Vec<Shader> {
    let reduce = if tier.subgroups {
        REDUCE_SUBGROUP
    } else {
        REDUCE_WORKGROUP
    };
    let shader = |weight, (tokens, aligned)| {
        let (entry, text, x) = if tokens == 1 {
            ("product_row", PRODUCT_ROW, Some(usual_x(weight)))
        } else {
            ("product_rows", PRODUCT_ROWS, None)
        };
        Shader {
            source: format!(
                "const LANES: u32 = {LANES}u;\nconst ROWS: u32 = {ROWS}u;\n\
                 {NUMERIC}{ELEMENT}{PRODUCT_CALL}{PRODUCT}{reduce}{text}"
            ),
            entry,
            constants: product_constants((weight, x), aligned, tier),
            in_bounds: true,
        }
    };
    WEIGHTS
        .into_iter()
        .flat_map(|weight| ROW_KINDS.map(|kind| shader(weight, kind)))
        .collect()
}

/// By weight type and [`TILE_KINDS`].
pub(crate) fn tiles(tier: Tier) -> Vec<Shader> {
    let shader = |weight, (size, aligned): (usize, bool)| Shader {
        source: format!(
            "const TILE: u32 = {}u;\nconst DEPTH: u32 = {}u;\nconst BUFFERS: u32 = {}u;\n\
             {NUMERIC}{ELEMENT}{PRODUCT_CALL}{PRODUCT}{PRODUCT_TILES}",
            TILES[size],
            TILE_DEPTH[size],
            1 + u32::from(tier.two_buffers)
        ),
        entry: "product_tiles",
        constants: product_constants(
            (weight, (size == 1).then_some(usual_x(weight))),
            aligned,
            tier,
        ),
        in_bounds: true,
    };
    WEIGHTS
        .into_iter()
        .flat_map(|weight| TILE_KINDS.map(|kind| shader(weight, kind)))
        .collect()
}

/// The tiles of f16 by f16 on cooperative matrices.
pub(crate) fn cooperative() -> Shader {
    Shader {
        source: [
            "enable f16;\nenable wgpu_cooperative_matrix;\n",
            NUMERIC,
            ELEMENT,
            PRODUCT_CALL,
            PRODUCT_COOPERATIVE,
        ]
        .concat(),
        entry: "product_cooperative",
        constants: vec![("DTYPE", f64::from(dtype_code(DType::F16)))],
        in_bounds: true,
    }
}

/// The side of its tiles.
pub(crate) const COOPERATIVE_TILE: u32 = 128;

/// Elements of a row that it takes at a time.
pub(crate) const COOPERATIVE_DEPTH: u32 = 32;

/// Bytes of a workgroup's memory that it takes.
pub(crate) const COOPERATIVE_STORAGE: u32 = 2 * COOPERATIVE_TILE * 10 * 8 + 4 * 16 * 16 * 4;

#[cfg(test)]
mod tests {
    use super::*;
    use naga::front::wgsl::{Frontend, Options};
    use naga::valid::{
        Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator,
    };

    #[test]
    fn every_shader_is_valid() {
        let tier = |on| Tier {
            subgroups: on,
            e4m3_as_f16: on,
            two_buffers: on,
        };
        let both = [false, true].map(tier);
        let all = [
            activations(),
            quantisations(),
            vec![dequantisation(), cooperative()],
            both.map(rows).concat(),
            both.map(tiles).concat(),
        ]
        .concat();
        assert_eq!(all.len(), 11 + 5 + 1 + 2 * 4 * (3 + 3));
        for shader in all {
            let mut capabilities = Capabilities::IMMEDIATES
                | Capabilities::SUBGROUP
                | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            if shader.entry == "product_cooperative" {
                capabilities |= Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16;
            }
            let mut frontend = Frontend::new_with_options(Options {
                parse_doc_comments: false,
                capabilities,
            });
            let module = frontend.parse(&shader.source).unwrap_or_else(|e| {
                panic!("{}: {}", shader.entry, e.emit_to_string(&shader.source))
            });
            let mut validator = Validator::new(ValidationFlags::all(), capabilities);
            validator
                .subgroup_stages(ShaderStages::COMPUTE)
                .subgroup_operations(SubgroupOperationSet::all());
            let info = validator.validate(&module).unwrap_or_else(|e| {
                panic!("{}: {}", shader.entry, e.emit_to_string(&shader.source))
            });
            let constants = shader
                .constants
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect();
            let stage = Some((naga::ShaderStage::Compute, shader.entry));
            naga::back::pipeline_constants::process_overrides(&module, &info, stage, &constants)
                .unwrap_or_else(|e| panic!("{} {:?}: {e}", shader.entry, shader.constants));
        }
    }
}
