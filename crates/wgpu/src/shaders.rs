//! The shaders' text, and every combination of constants that it is compiled with.

use swiglu_core::DType;

mod product;

pub(crate) use product::*;

const NUMERIC: &str = include_str!("shaders/numeric.wgsl");
const ELEMENT: &str = include_str!("shaders/element.wgsl");
const OP: &str = include_str!("shaders/op.wgsl");
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
    /// The same for one row of whole workgroups, from the start of every binding.
    NativeRow,
}

/// The kernels for activations that there are.
pub(crate) fn activation_kinds() -> Vec<(DType, ActivationKind)> {
    let kinds = [
        ActivationKind::Words,
        ActivationKind::Vectors,
        ActivationKind::SiluVectors,
        ActivationKind::NativeSilu,
        ActivationKind::NativeRow,
    ];
    let all = DType::COMPUTE
        .into_iter()
        .flat_map(|dtype| kinds.map(|kind| (dtype, kind)));
    let is_native = |kind| matches!(kind, ActivationKind::NativeSilu | ActivationKind::NativeRow);
    all.filter(|&(dtype, kind)| !is_native(kind) || dtype.size() == 2)
        .collect()
}

/// One pipeline's text and constants.
#[derive(Clone, Debug)]
pub(crate) struct Shader {
    pub(crate) source: String,
    pub(crate) entry: &'static str,
    pub(crate) constants: Vec<(&'static str, f64)>,
    /// Whether indices are compared with bounds, and divisors with 0, at run time.
    pub(crate) checked: bool,
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

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

fn activation_constants(dtype: DType, only_silu: bool) -> Vec<(&'static str, f64)> {
    vec![
        ("DTYPE", f64::from(dtype_code(dtype))),
        ("ONLY_SILU", flag(only_silu)),
    ]
}

/// What every kernel that is called as an activation starts with, and the rest of its text.
fn activation_text(rest: &[&str]) -> String {
    [NUMERIC, ELEMENT, OP, OPERATION, ACTIVATION].concat() + &rest.concat()
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
            ActivationKind::NativeSilu | ActivationKind::NativeRow => {
                ("activation_native", vectors.as_str())
            }
        };
        let only_silu = !matches!(kind, ActivationKind::Words | ActivationKind::Vectors);
        let mut constants = activation_constants(dtype, only_silu);
        if kind == ActivationKind::NativeRow {
            constants.push(("ONE_ROW", 1.0));
        }
        Shader {
            source: activation_text(&[text]),
            entry,
            constants,
            checked: true,
        }
    };
    activation_kinds().into_iter().map(shader).collect()
}

/// The fused kernels by compute type, then the one that quantizes a matrix of any type.
pub(crate) fn quantizations() -> Vec<Shader> {
    let shader = |dtype, elements: &[&str]| Shader {
        source: activation_text(&[QUANT_SCALES, QUANT]) + &elements.concat(),
        entry: "quantize",
        constants: activation_constants(dtype, false),
        checked: true,
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
pub(crate) fn dequantization() -> Shader {
    Shader {
        source: activation_text(&[QUANT_SCALES, DEQUANT]),
        entry: "dequantize",
        constants: activation_constants(DType::F32, false),
        checked: true,
    }
}

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
            quantizations(),
            vec![dequantization(), cooperative(None), cooperative(Some(7168))],
            both.map(rows).concat(),
            both.map(gated).concat(),
            both.map(tiles).concat(),
        ]
        .concat();
        assert_eq!(all.len(), 13 + 5 + 2 + 2 * (4 * (5 + 3) + 3 * 3));
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
