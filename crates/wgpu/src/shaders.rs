//! The shaders' text, and every combination of constants that it is compiled with.

use swiglu_core::DType;

const NUMERIC: &str = include_str!("shaders/numeric.wgsl");
const ELEMENT: &str = include_str!("shaders/element.wgsl");
const ACTIVATION: &str = include_str!("shaders/activation.wgsl");
const ACTIVATION_WORDS: &str = include_str!("shaders/activation_words.wgsl");
const ACTIVATION_VECTORS: &str = include_str!("shaders/activation_vectors.wgsl");
const PRODUCT: &str = include_str!("shaders/product.wgsl");
const PRODUCT_ROWS: &str = include_str!("shaders/product_rows.wgsl");
const REDUCE_SUBGROUP: &str = include_str!("shaders/reduce_subgroup.wgsl");
const REDUCE_WORKGROUP: &str = include_str!("shaders/reduce_workgroup.wgsl");
const PRODUCT_TILES: &str = include_str!("shaders/product_tiles.wgsl");

/// The types of weights that products read.
pub(crate) const WEIGHTS: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3];

/// The most tokens of each matrix-vector kernel.
pub(crate) const TOKENS: [u32; 3] = [1, 4, 8];

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

/// By compute type and [`ActivationKind`].
pub(crate) fn activations() -> Vec<Shader> {
    let shader = |dtype, kind| {
        let (entry, text) = match kind {
            ActivationKind::Words => ("activation_words", ACTIVATION_WORDS),
            ActivationKind::Vectors | ActivationKind::SiluVectors => {
                ("activation_vectors", ACTIVATION_VECTORS)
            }
        };
        let only_silu = kind == ActivationKind::SiluVectors;
        Shader {
            source: [NUMERIC, ELEMENT, ACTIVATION, text].concat(),
            entry,
            constants: vec![
                ("DTYPE", f64::from(dtype_code(dtype))),
                ("ONLY_SILU", f64::from(u8::from(only_silu))),
            ],
        }
    };
    DType::COMPUTE
        .into_iter()
        .flat_map(|dtype| ActivationKind::ALL.map(|kind| shader(dtype, kind)))
        .collect()
}

fn product_constants(weight: DType) -> Vec<(&'static str, f64)> {
    let per_vector = 16 / weight.size();
    vec![
        ("DTYPE", f64::from(dtype_code(weight))),
        ("QUADS", (per_vector / 4) as f64),
    ]
}

/// By weight type and [`TOKENS`].
pub(crate) fn rows(subgroups: bool) -> Vec<Shader> {
    let reduce = if subgroups {
        REDUCE_SUBGROUP
    } else {
        REDUCE_WORKGROUP
    };
    let shader = |weight, tokens| Shader {
        source: format!(
            "const TOKENS: u32 = {tokens}u;\nconst LANES: u32 = {LANES}u;\n\
             const ROWS: u32 = {ROWS}u;\n{NUMERIC}{ELEMENT}{PRODUCT}{reduce}{PRODUCT_ROWS}"
        ),
        entry: "product_rows",
        constants: product_constants(weight),
    };
    WEIGHTS
        .into_iter()
        .flat_map(|weight| TOKENS.map(|tokens| shader(weight, tokens)))
        .collect()
}

/// By weight type and [`TILES`].
pub(crate) fn tiles() -> Vec<Shader> {
    let shader = |weight, tile, depth| Shader {
        source: format!(
            "const TILE: u32 = {tile}u;\nconst DEPTH: u32 = {depth}u;\n\
             {NUMERIC}{ELEMENT}{PRODUCT}{PRODUCT_TILES}"
        ),
        entry: "product_tiles",
        constants: product_constants(weight),
    };
    WEIGHTS
        .into_iter()
        .flat_map(|weight| [0, 1].map(|i| shader(weight, TILES[i], TILE_DEPTH[i])))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

    #[test]
    fn every_shader_is_valid() {
        let all = [activations(), rows(false), rows(true), tiles()].concat();
        assert_eq!(all.len(), 9 + 12 + 12 + 8);
        for shader in all {
            let module = naga::front::wgsl::parse_str(&shader.source)
                .unwrap_or_else(|e| panic!("{}: {}", shader.entry, e.emit_to_string(&shader.source)));
            let mut validator = Validator::new(
                ValidationFlags::all(),
                Capabilities::IMMEDIATES | Capabilities::SUBGROUP,
            );
            validator
                .subgroup_stages(ShaderStages::COMPUTE)
                .subgroup_operations(SubgroupOperationSet::all());
            let info = validator
                .validate(&module)
                .unwrap_or_else(|e| panic!("{}: {}", shader.entry, e.emit_to_string(&shader.source)));
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
