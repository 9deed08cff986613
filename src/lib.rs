//! Gated activations and the DeepSeek-V4 MLP, exactly, on CPUs and GPUs.
//!
//! DeepSeek-V4 clamps its gated activation: `y = silu(min(gate, L)) · clamp(up, -L, L)` with
//! L = 10. This library has that operation, its whole family and the MLP around it on every
//! platform, tested against the definition.
//!
//! ```
//! use swiglu::{Dispatcher, GatedActivation, bf16};
//!
//! # fn main() -> swiglu::Result<()> {
//! let op = GatedActivation::deepseek_v4();
//! let device = Dispatcher::from_env()?.device(&op, swiglu::DType::BF16)?;
//! println!("{}", device.report()); // cpu (native); not cuda (…), wgpu (…)
//!
//! let gate_up = vec![bf16::from_f32(30.0); 2 * 4096]; // one row: gate ‖ up
//! let mut y = vec![bf16::ZERO; 4096];
//! device.act_and_mul(&op, &gate_up, &mut y, 4096)?;
//! assert_eq!(y[0], bf16::from_f32(99.9955)); // silu(10) · 10, not silu(30) · 30
//! # Ok(())
//! # }
//! ```
//!
//! That is the convenient way, for host memory. An engine with its own thread pool, stream or
//! queue uses a backend's crate directly: [`cpu`] and the others behind their features, each an
//! implementation of [`Backend`], [`ActAndMul`], [`Matmul`] and [`GatedMatmul`].
//!
//! | feature | platform | |
//! |---|---|---|
//! | `cpu` (default) | CPUs | rayon, AVX2, AVX-512, NEON, or scalar |
//! | `cuda` | NVIDIA GPUs from sm_80 on | CUDA C++ on cudarc; builds without CUDA |
//! | `wgpu` | GPUs through Vulkan, Metal or DirectX 12 | WGSL |
#![forbid(unsafe_code)]

mod device;
mod erased;
mod platforms;

pub use device::{Device, Dispatcher, Mlp};
pub use erased::{AnyAct, AnyBackend, AnyMlp};
pub use platforms::built_in;
pub use swiglu_core::*;

#[cfg(feature = "cpu")]
pub use swiglu_cpu as cpu;
#[cfg(feature = "cuda")]
pub use swiglu_cuda as cuda;
pub use swiglu_mlp as mlp;
#[cfg(feature = "wgpu")]
pub use swiglu_wgpu as wgpu;
