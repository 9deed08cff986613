//! The kernels that quantize, fused with an activation or alone, and back.

use std::fmt;

use swiglu_core::Float;

use super::shader::{
    ACTIVATION_NATIVE, ACTIVATION_QUICK, ELEMENT, FUNCTIONS_TEXT, NUMERIC, OP, OPERATION, Shader,
    WORKGROUP_TEXT, activation_constants,
};

pub(super) const QUANT: &str = include_str!("../shaders/quant.wgsl");
pub(super) const CALL: &str = include_str!("../shaders/quantize_call.wgsl");
pub(super) const SCALES: &str = include_str!("../shaders/scales.wgsl");
const QUANTIZE: &str = include_str!("../shaders/quantize.wgsl");
const OF_ACTIVATION: &str = include_str!("../shaders/quantize_activation.wgsl");
const OF_MATRIX: &str = include_str!("../shaders/quantize_matrix.wgsl");
const DEQUANTIZE: &str = include_str!("../shaders/dequantize.wgsl");

/// Storage buffers of the kernels that quantize.
pub(super) const QUANTIZE_BUFFERS: u32 = 7;

/// A kernel that quantizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuantizeKernel {
    /// What an activation gives of this type.
    Fused(Float),
    /// A matrix of any type.
    Matrix,
}

impl QuantizeKernel {
    /// All of them, by [`Self::index`].
    pub(crate) const ALL: [Self; 4] = [
        Self::Fused(Float::F32),
        Self::Fused(Float::F16),
        Self::Fused(Float::BF16),
        Self::Matrix,
    ];

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Fused(float) => float as usize,
            Self::Matrix => 3,
        }
    }

    pub(super) fn shader(self) -> Shader {
        let (elements, constants) = match self {
            Self::Fused(float) => (
                [
                    FUNCTIONS_TEXT,
                    OPERATION,
                    ACTIVATION_QUICK,
                    ACTIVATION_NATIVE,
                    OF_ACTIVATION,
                ]
                .concat(),
                activation_constants(float, false),
            ),
            Self::Matrix => (OF_MATRIX.to_owned(), Vec::new()),
        };
        Shader {
            source: shared() + QUANTIZE + &elements,
            entry: "quantize",
            constants,
            checked: true,
        }
    }
}

impl fmt::Display for QuantizeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fused(float) => write!(f, "quantize(activation in {float})"),
            Self::Matrix => f.write_str("quantize(matrix)"),
        }
    }
}

fn shared() -> String {
    [NUMERIC, ELEMENT, OP, QUANT, CALL, WORKGROUP_TEXT, SCALES].concat()
}

/// Codes times scales, to any type.
pub(super) fn dequantization() -> Shader {
    Shader {
        source: shared() + DEQUANTIZE,
        entry: "dequantize",
        constants: Vec::new(),
        checked: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_by_their_index() {
        for (i, kernel) in QuantizeKernel::ALL.into_iter().enumerate() {
            assert_eq!(kernel.index(), i, "{kernel:?}");
        }
    }
}
