//! Matmuls: which kernel one runs, our own kernels, and cublasLt.

mod call;
mod cublaslt;
mod kernels;
mod library;
mod plan;
mod scratch;

pub(crate) use call::Matmuls;
pub use plan::Route;
