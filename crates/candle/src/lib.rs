//! The gated activations and the DeepSeek-V4 MLP of swiglu on candle's tensors.
//!
//! - [`act_and_mul`], [`act_and_mul_split`]: an activation of the family on a tensor
//!   \[.., 2d\], or on gate and up apart; [`ActAndMul`] is the same as a [`candle_nn::Module`] and as
//!   a custom operation;
//! - [`DeepseekV4Mlp`]: the MLP as a [`candle_nn::Module`], from a [`candle_nn::VarBuilder`] or from
//!   this library's [`Checkpoint`], which has FP8 weights.
//!
//! ```
//! use candle_core::{DType, Device, IndexOp, Tensor};
//! use swiglu_candle::{GatedActivation, act_and_mul, act_and_mul_split};
//! # fn main() -> candle_core::Result<()> {
//! let op = GatedActivation::deepseek_v4(); // silu(min(gate, 10)) · clamp(up, -10, 10)
//! let gate_up = Tensor::full(30_f32, (2, 7, 2 * 64), &Device::Cpu)?.to_dtype(DType::BF16)?;
//! let y = act_and_mul(&op, &gate_up)?; // [2, 7, 64]
//! assert_eq!(y.i((0, 0, 0))?.to_dtype(DType::F32)?.to_scalar::<f32>()?, 100.0); // 99.9955 in bf16
//!
//! let (gate, up) = (gate_up.narrow(2, 0, 64)?, gate_up.narrow(2, 64, 64)?); // no copy
//! assert_eq!(act_and_mul_split(&op, &gate, &up)?.dims(), [2, 7, 64]);
//! # Ok(())
//! # }
//! ```
//!
//! # Tensors
//!
//! Tensors are f32, f16 or bf16 and are read where they lie: their rows, the last dimension, may lie
//! apart and begin anywhere, as `narrow`, `chunk` and indexing leave them. What has no such rows
//! (a transposed or broadcast last dimension, rows at two distances) is refused with the advice to
//! call `.contiguous()`. Results are new contiguous tensors of the input's type.
//!
//! # Devices
//!
//! On the CPU operations run in the rayon pool that they are called from: candle's own inside of
//! `Device::with_context`, else the global one. With the feature `cuda` they run on CUDA tensors too,
//! on the stream of the tensor's device; building it takes nvcc, because candle compiles its kernels
//! then. Metal tensors are refused.
//!
//! # Gradients
//!
//! There are none: a backward pass through one of these operations is an error that says so.
#![deny(unsafe_code)]

mod activation;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod host;
mod mlp;
mod rows;
mod weights;

pub use activation::{ActAndMul, act_and_mul, act_and_mul_split};
pub use mlp::{DeepseekV4Mlp, MlpBuilder};
pub use swiglu_core::{GatedActivation, Limit, Rounding};
pub use swiglu_mlp::{
    ActivationQuant, Checkpoint, HiddenAct, MlpConfig, ModelConfig, Shard, SharedExpert,
};

/// The examples of the README are tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
