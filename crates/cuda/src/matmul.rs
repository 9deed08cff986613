//! Matmuls: which kernel one runs, our own kernels, and cublasLt.

mod call;
mod code_tiles;
mod codes;
mod cublaslt;
mod describe;
mod kernels;
mod library;
mod mapped;
mod packed;
mod parameters;
mod plan;
mod quantizing;
mod scratch;
mod shared;
mod step;
mod warpgroups;

pub(crate) use call::Matmuls;
pub(crate) use parameters::y_type;
pub(crate) use plan::MatmulFacts;
pub use plan::Route;
pub(crate) use quantizing::{CodesCall, QuantizingCall, QuantizingPlan, codes_in};
pub(crate) use shared::{SharedStep, SharedSteps};
