//! Quantization to FP8 and back.

mod call;
mod kernels;
mod launches;
mod plan;

pub use call::{RawQuantCall, RawQuantized};
pub use kernels::Quantizers;
