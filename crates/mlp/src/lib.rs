//! The DeepSeek-V4 MLP over any backend of swiglu, and its checkpoints.
//!
//! - [`ModelConfig`]: what a model's `config.json` says about its MLP;
//! - [`Checkpoint`], [`SharedExpert`]: its weights, mapped from safetensors files;
//! - [`MlpConfig`], [`DeepseekV4Mlp`], [`Workspace`]: the MLP itself, on any backend that has
//!   [`swiglu_core::Matmul`] and [`swiglu_core::Quantize`];
//! - [`ActivationQuant`]: whether its matmuls read bf16 or FP8;
//! - [`Shard`]: one rank's share of it;
//! - [`MoeConfig`], [`MoeWeights`], [`DeepseekV4Moe`], [`MoeWorkspace`]: the whole layer, with its
//!   router and its routed experts;
//! - [`inspect`]: what a checkpoint holds, and the numbers of a weight;
//! - [`synthetic`]: checkpoints and inputs for trials.
//!
//! ```
//! use std::sync::Arc;
//! use swiglu_core::{RowLayout, Tensor, TensorMut, bf16, reference::Reference};
//! use swiglu_mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
//! use swiglu_mlp::{Checkpoint, DeepseekV4Mlp, ModelConfig, SharedExpert, Workspace};
//!
//! # fn main() -> Result<(), swiglu_mlp::Error> {
//! # let folder = std::env::temp_dir().join(format!("swiglu-mlp-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder).unwrap();
//! let tiny = SyntheticConfig { hidden: 96, intermediate: 64, ..SyntheticConfig::flash(1) };
//! write_checkpoint(&folder, &tiny)?;
//!
//! let model = ModelConfig::from_file(&folder.join("config.json"))?;
//! let config = model.mlp_config("layers.3.ffn.shared_experts")?;
//! let checkpoint = Checkpoint::open(&folder)?;
//! let expert = SharedExpert::load(&checkpoint, &config)?;
//! let mlp = DeepseekV4Mlp::load(Arc::new(Reference), &config, &expert)?;
//!
//! let x = synthetic_input(2, 96, 1);
//! let mut y = vec![bf16::ZERO; 2 * 96];
//! let rows = RowLayout::contiguous(2, 96);
//! mlp.forward(
//!     Tensor::from_slice(&x, rows),
//!     TensorMut::from_slice(&mut y, rows),
//!     &mut Workspace::new(),
//! )?;
//! # std::fs::remove_dir_all(&folder).unwrap();
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
mod error;
mod expert;
pub mod inspect;
mod json;
mod mlp;
mod mlp_config;
mod moe;
mod pool;
mod shard;
mod stage;
pub mod synthetic;
mod text;
mod workspace;

pub use checkpoint::{Checkpoint, OpenMode};
pub use config::{ExpertDtype, ModelConfig};
pub use error::{Error, Result};
pub use expert::SharedExpert;
pub use mlp::DeepseekV4Mlp;
pub use mlp_config::{ActivationQuant, HiddenAct, MlpConfig};
pub use moe::{DeepseekV4Moe, MoeConfig, MoeStages, MoeWeights, MoeWorkspace};
pub use pool::{PooledWorkspace, WorkspacePool};
pub use shard::Shard;
pub use workspace::Workspace;
