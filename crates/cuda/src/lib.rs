//! The CUDA backend of swiglu.
//!
//! - [`probe`]: whether CUDA can be used here, and why not; it never panics. [`devices`] lists them;
//! - [`CudaBackend`]: the backend, on the caller's own stream and the caller's own memory: a
//!   [`DeviceView`] is a part of a [`CudaBuffer`], a slice of cudarc's, or an address. It opens over
//!   a bare `CUcontext` and `CUstream` as well ([`CudaBuilder::on_raw`]), of another cudarc or of none;
//! - [`Activations`]: the activation alone, over cudarc's streams and slices, or over bare device
//!   pointers and a stream handle, for engines with their own memory;
//! - [`Quantizers`]: the activation that gives FP8 codes with their scales, and quantization alone
//!   and back, over bare device pointers.
//!
//! The kernels are CUDA C++ templates in `kernels/`, compiled ahead into the fatbins of `fatbin/`:
//! nothing needs nvcc, CUDA or a GPU in order to build. `cargo xtask kernels` compiles them again.
//! They hold machine code of CUDA 12 for compute capabilities 8.0, 9.0, 10.0 and 12.0, and PTX for
//! others from 8.0 on: driver R525 (CUDA 12.0) or newer runs them. Any features of cudarc's that
//! link or load CUDA, of version 12.0 or later, do.
//!
//! ```no_run
//! use swiglu_core::GatedActivation;
//! use swiglu_cuda::{Activations, LaunchOptions, cudarc::driver::CudaContext};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! swiglu_cuda::probe()?;
//! let context = CudaContext::new(0)?;
//! let stream = context.default_stream();
//! let activations = Activations::new(&context)?;
//! let input = stream.clone_htod(&[1.0_f32, 2.0, 3.0, 4.0])?;
//! let mut output = stream.alloc_zeros::<f32>(2)?;
//! let op = GatedActivation::deepseek_v4();
//! activations.act_and_mul(&stream, &op, &input, &mut output, 2, LaunchOptions::default())?;
//! assert_eq!(stream.clone_dtoh(&output)?[0], 2.193_175_8); // silu(1) * 3
//! # Ok(())
//! # }
//! ```
//!
//! # Graphs
//! After construction no call allocates, synchronizes or loads a module, except where it says so:
//! calls may be captured into a CUDA graph. cudarc's own slices record events where a context has
//! several streams; for capture, call `disable_event_tracking` on the context first.

pub use cudarc;

mod activation;
mod backend;
mod buffer;
mod error;
mod launch;
pub mod limits;
mod loader;
mod matmul;
mod moe;
#[cfg(feature = "nccl")]
mod nccl;
mod open;
mod probe;
mod quant;
mod view;
mod weight;

pub use activation::{Activations, Batches, RawActCall, RawGateUp};
pub use buffer::CudaBuffer;
pub use error::{CublasStatus, Error, PLATFORM, Result};
pub use launch::options::LaunchOptions;
#[doc(hidden)]
pub use matmul::Route;
pub use open::{CudaBackend, CudaBuilder};
pub use probe::{DeviceInfo, NotAvailable, devices, probe};
pub use quant::{Quantizers, RawQuantCall, RawQuantized};
pub use view::{DeviceView, DeviceViewMut, RawMatrix, ReadSlice, WriteSlice};
pub use weight::CudaWeight;
#[cfg(feature = "nccl")]
pub use {
    error::NcclError,
    nccl::{NcclCommunicator, NcclId},
};
