//! The wgpu backend of swiglu: gated activations and matmuls as WGSL compute shaders, on Vulkan,
//! Metal and DirectX 12.
//!
//! [`WgpuBackend::open`] opens the best adapter, [`WgpuBackend::builder`] with other settings;
//! [`WgpuBackend::from_device`] takes a device that is there already. Calls of the traits in
//! `swiglu_core` record and are submitted together; [`WgpuBackend::record_act_and_mul`],
//! [`WgpuBackend::record_matmul`] and [`WgpuBackend::record_matmul_act_and_mul`] record into a
//! [`wgpu::ComputePass`] of the caller's; [`WgpuBackend::act_and_mul_slice`] does everything.
//! Matrices are [`View`]s: of a [`Buffer`], or of any place in a buffer of the caller's.
//!
//! ```
//! use swiglu_core::GatedActivation;
//! use swiglu_wgpu::WgpuBackend;
//! # fn main() -> Result<(), swiglu_core::Error> {
//! let backend = match WgpuBackend::builder().allow_software(true).open() {
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
mod backend;
mod buffer;
mod builder;
mod device;
mod error;
mod launch;
pub mod limits;
mod matmul;
mod moe;
mod pipelines;
mod plans;
mod quant;
mod record;
mod requests;
#[cfg(test)]
mod tests;
mod view;
mod weight;

pub use backend::WgpuBackend;
pub use buffer::Buffer;
pub use builder::{Builder, adapters, probe};
pub use device::{ALLOW_SOFTWARE_VARIABLE, AdapterReport, Device};
pub use error::{Result, WgpuError};
pub use pipelines::CACHE_VARIABLE;
pub use view::{View, ViewMut};
pub use weight::Weight;
pub use wgpu;
