//! Matmuls: which kernel one runs, our own kernels, and cublasLt.

mod call;
mod kernels;
mod library;
mod plan;

pub(crate) use call::Matmuls;
pub use plan::Route;
