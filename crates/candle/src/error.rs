//! candle's operations return candle's error: those of the crates below are wrapped in it.

use std::fmt::Display;

use candle_core::{DType, Error};
use swiglu_core::{Error as CoreError, Float};

/// An error of the crates below, as candle's.
pub(crate) trait OrCandle<T> {
    fn or_candle(self) -> candle_core::Result<T>;
}

impl<T, E: Display + Send + Sync + 'static> OrCandle<T> for Result<T, E> {
    fn or_candle(self) -> candle_core::Result<T> {
        self.map_err(Error::wrap)
    }
}

/// "argument: expected …, got …".
pub(crate) fn argument(
    argument: &'static str,
    expected: impl Into<String>,
    got: impl ToString,
) -> Error {
    Error::wrap(CoreError::argument(argument, expected, got))
}

/// The type of a tensor's elements, if it is one that is computed on.
pub(crate) fn float(name: &'static str, dtype: DType) -> candle_core::Result<Float> {
    match dtype {
        DType::F32 => Ok(Float::F32),
        DType::F16 => Ok(Float::F16),
        DType::BF16 => Ok(Float::BF16),
        other => Err(argument(name, "f32, f16 or bf16", other.as_str())),
    }
}

/// The error of a backward pass.
pub(crate) fn no_gradient(operation: &str) -> Error {
    Error::wrap(format!(
        "{operation}: no gradient: swiglu's operations are for inference; compose the function from \
         candle's own operations to train, or detach its result"
    ))
}

/// The error of a Metal tensor.
pub(crate) fn no_metal(operation: &str) -> Error {
    Error::wrap(format!(
        "{operation}: expected a tensor on the CPU or on CUDA, got one on Metal, which swiglu does not \
         run on"
    ))
}

/// The error of a CUDA tensor.
#[cfg(not(feature = "cuda"))]
pub(crate) fn no_cuda(operation: &str) -> Error {
    Error::wrap(format!(
        "{operation}: expected a tensor on the CPU, got one on CUDA: swiglu-candle was built without \
         its feature `cuda`"
    ))
}
