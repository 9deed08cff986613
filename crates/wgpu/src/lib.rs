//! The wgpu backend of swiglu: gated activations and matrix products as WGSL compute shaders, on
//! Vulkan, Metal and DirectX 12.
//!
//! [`WgpuBackend::new`] opens the best adapter; [`WgpuBackend::from_device`] takes a device that
//! is there already. Calls of the traits in `swiglu_core` record and are submitted together;
//! [`WgpuBackend::record_act_and_mul`], [`WgpuBackend::record_matmul`] and
//! [`WgpuBackend::record_matmul_act_and_mul`] record into a [`wgpu::ComputePass`] of the caller's;
//! [`WgpuBackend::act_and_mul_slice`] does everything.
//!
//! ```
//! use swiglu_core::GatedActivation;
//! use swiglu_wgpu::WgpuBackend;
//! # fn main() -> Result<(), swiglu_core::Error> {
//! let backend = match WgpuBackend::builder().allow_software(true).build() {
//!     Ok(backend) => backend,
//!     Err(reason) => {
//!         println!("{reason}");
//!         return Ok(());
//!     }
//! };
//! let y = backend.act_and_mul_slice(&GatedActivation::deepseek_v4(), &[20.0_f32, -30.0], 1)?;
//! assert!((y[0] + 99.9955).abs() < 1e-4); // silu(10) · -10
//! # Ok(())
//! # }
//! ```
//!
//! Subnormal numbers of f32 and bf16 may be flushed to zero, as the standard lets drivers do.
#![deny(unsafe_op_in_unsafe_fn)]

mod activation;
mod adapter;
mod backend;
mod bound;
mod buffer;
mod builder;
mod device;
mod error;
mod gated;
mod kernels;
mod matmul;
mod pipelines;
mod quant;
mod queue;
mod self_test;
mod shaders;
mod weight;
mod window;

pub use adapter::{ALLOW_SOFTWARE_VARIABLE, AdapterReport, adapters, probe};
pub use backend::WgpuBackend;
pub use buffer::Buffer;
pub use builder::Builder;
pub use device::Device;
pub use error::{Result, WgpuError};
pub use weight::Weight;
pub use wgpu;
