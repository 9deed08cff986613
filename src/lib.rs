//! Gated activations and the DeepSeek-V4 MLP, exactly, on CPUs and GPUs.
//!
//! DeepSeek-V4 clamps its gated activation: `y = silu(min(gate, L)) · clamp(up, -L, L)` with
//! L = 10. This library has that operation, its whole family and the MLP around it on every
//! platform, tested against the definition.
//!
//! ```
//! use swiglu::{Dispatcher, Float, GatedActivation, bf16};
//!
//! # fn main() -> swiglu::Result<()> {
//! let op = GatedActivation::deepseek_v4();
//! let device = Dispatcher::from_env()?.device(&op, Float::BF16)?;
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
//! That is the way from host memory. An engine with its own thread pool, stream or queue uses a
//! backend's crate directly ([`cpu`] and the others behind their features): each implements
//! [`Backend`], [`ActAndMul`], [`Quantize`] and [`Matmul`] on views of the engine's own memory.
//!
//! | feature | platform | |
//! |---|---|---|
//! | `cpu` (default) | CPUs | rayon, AVX2, AVX-512, NEON, or scalar |
//! | `cuda` | NVIDIA GPUs from sm_80 on | CUDA C++ on cudarc; builds without CUDA |
//! | `wgpu` | GPUs through Vulkan, Metal or DirectX 12 | WGSL |
//! | `candle` | candle's tensors on CPUs | custom operations, and the MLP as a module |
//! | `candle-cuda` | candle's tensors on CUDA too | takes nvcc to build, as candle's `cuda` does |
#![forbid(unsafe_code)]

mod device;
mod erased;
mod mlp_on_host;
mod moe_on_host;
mod platforms;

pub use device::{Device, Dispatcher};
pub use erased::AnyBackend;
pub use mlp_on_host::Mlp;
pub use moe_on_host::{HostTokens, Moe, MoeOutput};
pub use platforms::built_in;

// The activation as a value.
pub use swiglu_core::{
    Clamp, Function, GatedActivation, Layout, Limit, Operator, Order, Parameter, Parameters,
    Rounding,
};
// What numbers are stored as.
pub use swiglu_core::{
    E2M1, E4M3, E8M0, Element, Float, HostWeight, Quantization, ScaleFormat, ScaleLayout,
    ScaleOrder, WeightFormat, bf16, f16, with_float,
};
// Matrices.
pub use swiglu_core::{
    ActShape, GateUp, HostBuffer, Quantized, QuantizedMut, RowLayout, Tensor, TensorMut,
};
// What a backend does, and says of it.
pub use swiglu_core::{
    Accumulation, Accuracy, ActAndMul, Backend, Batch, GroupedMatmul, Matmul, NoWeight,
    QuantOptions, Quantize, Request, Router, Shape, Support, host_memory,
};
// Routed experts.
pub use swiglu_core::{
    Experts, ExpertsShape, Gate, HostGate, HostRouter, HostRoutes, Routes, Routing, Selection,
    Token, Tokens, sort_by_expert,
};
// Several ranks.
pub use swiglu_core::{Communicator, HostCommunicator, LocalCommunicator, check_all_reduce_into};
// Which backend runs.
pub use swiglu_core::{Dispatch, OpSwitches, OpenOptions, Registry, Rejection, Report};
pub use swiglu_core::{Error, Result, reference};

#[cfg(feature = "candle")]
pub use swiglu_candle as candle;
#[cfg(feature = "cpu")]
pub use swiglu_cpu as cpu;
#[cfg(feature = "cuda")]
pub use swiglu_cuda as cuda;
pub use swiglu_mlp as mlp;
#[cfg(feature = "mpi")]
pub use swiglu_mpi as mpi;
#[cfg(feature = "wgpu")]
pub use swiglu_wgpu as wgpu;
