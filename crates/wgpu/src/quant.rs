//! Quantization to FP8 and back: which kernel, by which path, and the dispatches.

mod plan;
mod record;

pub(crate) use plan::{FusedInput, QuantizePlan};
pub(crate) use record::{FusedOptions, dequantize, fused, quantize};
