//! The CPU backend of swiglu: gated activations and matmuls on rayon and SIMD.
//!
//! [`CpuBackend`] implements the traits of `swiglu_core`; [`act_and_mul`] is the operation on
//! slices for those who use nothing else.
//!
//! ```
//! use swiglu_core::{GatedActivation, RowLayout, Tensor, TensorMut, bf16};
//! # fn main() -> swiglu_core::Result<()> {
//! // Two rows of gate ‖ up with d = 3, in rows of 8 elements of which the last 2 are unused.
//! let input = [bf16::from_f32(12.0); 2 * 8];
//! let mut output = [bf16::ZERO; 2 * 3];
//! swiglu_cpu::act_and_mul(
//!     &GatedActivation::deepseek_v4(),
//!     Tensor::from_slice(&input, RowLayout::contiguous(2, 6).with_stride(8)).into(),
//!     TensorMut::from_slice(&mut output, RowLayout::contiguous(2, 3)),
//! )?;
//! assert_eq!(output, [bf16::from_f32(99.9955); 6]); // silu(10) · 10
//! # Ok(())
//! # }
//! ```
//!
//! # Results
//!
//! Every [`InstructionSet`] performs the same exactly rounded operations in the same order on each
//! element, and an output of a matmul is summed over k in a fixed order. So results depend neither
//! on the instruction set, nor on the number of threads, nor on the other rows of a call.
//!
//! A matrix unit sums matmuls of bf16 in an order of its own, which depends neither on threads nor on
//! other rows: tiles ([`InstructionSet::Amx`]) those of more than a few rows, dot products
//! ([`InstructionSet::Avx512Bf16`]) all. Unless ordered sums are asked for
//! ([`CpuBackend::with_accumulation`]).
//!
//! # Threads
//!
//! Calls run in the rayon pool that they are made from, or in the one that the backend was built
//! with. From outside of any pool they run on the caller's thread and on threads of this process's own,
//! one fewer than rayon's global pool has, which look for the next call for some 30 microseconds before
//! they sleep; a second call at the same time runs in rayon's global pool. Small calls run on the
//! caller's thread and wake nobody.

mod activation;
mod backend;
mod buffer;
mod cache;
mod cold;
#[cfg(target_arch = "x86_64")]
mod cpuid;
mod element;
mod error;
pub mod limits;
mod math;
mod matmul;
mod moe;
mod quant;
mod settings;
mod simd;
mod tasks;
mod weight;

pub use backend::{CpuBackend, act_and_mul};
pub use error::Error;
pub use settings::Settings;
pub use simd::InstructionSet;
pub use weight::PackedWeight;

const PLATFORM: &str = "cpu";

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
