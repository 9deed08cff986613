//! The shaders' text, and every combination of constants that it is compiled with.

use swiglu_core::DType;

const NUMERIC: &str = include_str!("shaders/numeric.wgsl");
const ELEMENT: &str = include_str!("shaders/element.wgsl");
const ACTIVATION: &str = include_str!("shaders/activation.wgsl");
const ACTIVATION_QUICK: &str = include_str!("shaders/activation_quick.wgsl");
const ACTIVATION_WORDS: &str = include_str!("shaders/activation_words.wgsl");
const ACTIVATION_VECTORS: &str = include_str!("shaders/activation_vectors.wgsl");
const QUANT_SCALES: &str = include_str!("shaders/quant_scales.wgsl");
const QUANT: &str = include_str!("shaders/quant.wgsl");
const QUANT_ACTIVATION: &str = include_str!("shaders/quant_activation.wgsl");
const QUANT_PLAIN: &str = include_str!("shaders/quant_plain.wgsl");
const DEQUANT: &str = include_str!("shaders/dequant.wgsl");
const PRODUCT: &str = include_str!("shaders/product.wgsl");
const PRODUCT_ROWS: &str = include_str!("shaders/product_rows.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("shaders/reduce_subgroup.wgsl");
const REDUCE_WORKGROUP: &str = include_str!("shaders/reduce_workgroup.wgsl");
const PRODUCT_TILES: &str = include_str!("shaders/product_tiles.wgsl");

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

/// The kernels for activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ActivationKind {
    /// Any place of the rows.
    Words,
    /// Whole vectors.
    Vectors,
    /// Whole vectors, with silu as the function.
    SiluVectors,
}

impl ActivationKind {
    pub(crate) const ALL: [Self; 3] = [Self::Words, Self::Vectors, Self::SiluVectors];
}

/// One pipeline's text and constants.
#[derive(Clone, Debug)]
pub(crate) struct Shader {
    pub(crate) source: String,
    pub(crate) entry: &'static str,
    pub(crate) constants: Vec<(&'static str, f64)>,
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

/// By compute type and [`ActivationKind`].
pub(crate) fn activations() -> Vec<Shader> {
    let shader = |dtype, kind| {
        let (entry, text) = match kind {
            ActivationKind::Words => ("activation_words", vec![ACTIVATION_WORDS]),
            ActivationKind::Vectors | ActivationKind::SiluVectors => (
                "activation_vectors",
                vec![ACTIVATION_QUICK, ACTIVATION_VECTORS],
            ),
        };
        let only_silu = kind == ActivationKind::SiluVectors;
        Shader {
            source: [NUMERIC, ELEMENT, ACTIVATION].concat() + &text.concat(),
            entry,
            constants: activation_constants(dtype, only_silu),
        }
    };
    DType::COMPUTE
        .into_iter()
        .flat_map(|dtype| ActivationKind::ALL.map(|kind| shader(dtype, kind)))
        .collect()
}

/// The fused kernels by compute type, then the one that quantises a matrix of any type.
pub(crate) fn quantisations() -> Vec<Shader> {
    let shader = |dtype, elements: &[&str]| Shader {
        source: [NUMERIC, ELEMENT, ACTIVATION, QUANT_SCALES, QUANT].concat() + &elements.concat(),
        entry: "quantise",
        constants: activation_constants(dtype, false),
    };
    let fused = |dtype| shader(dtype, &[ACTIVATION_QUICK, QUANT_ACTIVATION]);
    let mut all: Vec<_> = DType::COMPUTE.into_iter().map(fused).collect();
    all.push(shader(DType::F32, &[QUANT_PLAIN]));
    all
}

/// Codes times scales, to any type.
pub(crate) fn dequantisation() -> Shader {
    Shader {
        source: [NUMERIC, ELEMENT, ACTIVATION, QUANT_SCALES, DEQUANT].concat(),
        entry: "dequantise",
        constants: activation_constants(DType::F32, false),
    }
}

/// Which kernels are built, where there is a choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tier {
    /// Sums over lanes by subgroup operations.
    pub(crate) subgroups: bool,
    /// E4M3 decoded as f16.
    pub(crate) e4m3_as_f16: bool,
}

fn product_constants(weight: DType, aligned: bool, tier: Tier) -> Vec<(&'static str, f64)> {
    let flag = |on| f64::from(u8::from(on));
    vec![
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
    let shader = |weight, (tokens, aligned)| Shader {
        source: format!(
            "const TOKENS: u32 = {tokens}u;\nconst LANES: u32 = {LANES}u;\n\
             const ROWS: u32 = {ROWS}u;\n{NUMERIC}{ELEMENT}{PRODUCT}{reduce}{PRODUCT_ROWS}"
        ),
        entry: "product_rows",
        constants: product_constants(weight, aligned, tier),
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
            "const TILE: u32 = {}u;\nconst DEPTH: u32 = {}u;\n\
             {NUMERIC}{ELEMENT}{PRODUCT}{PRODUCT_TILES}",
            TILES[size], TILE_DEPTH[size]
        ),
        entry: "product_tiles",
        constants: product_constants(weight, aligned, tier),
    };
    WEIGHTS
        .into_iter()
        .flat_map(|weight| TILE_KINDS.map(|kind| shader(weight, kind)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use naga::valid::{
        Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator,
    };

    #[test]
    fn every_shader_is_valid() {
        let tier = |on| Tier {
            subgroups: on,
            e4m3_as_f16: on,
        };
        let both = [false, true].map(tier);
        let all = [
            activations(),
            quantisations(),
            vec![dequantisation()],
            both.map(rows).concat(),
            both.map(tiles).concat(),
        ]
        .concat();
        assert_eq!(all.len(), 9 + 5 + 2 * 4 * (3 + 3));
        for shader in all {
            let module = naga::front::wgsl::parse_str(&shader.source).unwrap_or_else(|e| {
                panic!("{}: {}", shader.entry, e.emit_to_string(&shader.source))
            });
            let mut validator = Validator::new(
                ValidationFlags::all(),
                Capabilities::IMMEDIATES
                    | Capabilities::SUBGROUP
                    | Capabilities::SHADER_FLOAT16_IN_FLOAT32,
            );
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
