//! The contract that every backend of swiglu answers to.
//!
//! - [`GatedActivation`]: a gated activation as one validated value;
//! - [`DType`], [`Element`], [`E4M3`], [`E8M0`]: what a tensor holds;
//! - [`RowLayout`], [`Rows`], [`RowsMut`]: where its rows lie, and the checks on that;
//! - [`Quantization`], [`ScaleLayout`]: how rows become FP8 codes with scales;
//! - [`Backend`], [`ActAndMul`], [`Matmul`], [`GatedMatmul`], [`ActAndMulQuant`],
//!   [`QuantizedMatmul`]: what a backend does;
//! - [`reference`](mod@reference): the operation in scalar code, the oracle of every test;
//! - [`Registry`], [`Report`], [`OpSwitches`]: which backend runs, and why not another.
//!
//! This crate touches no hardware.
#![forbid(unsafe_code)]

mod activation;
mod backend;
mod buffer;
mod dispatch;
mod dtype;
mod error;
mod fp8;
mod layout;
mod quant;
pub mod reference;
mod scales;
mod weight;

pub use activation::{
    Clamp, Function, GatedActivation, Layout, Limit, Operator, Order, Parameters, Rounding,
};
pub use backend::{
    ActAndMul, ActAndMulQuant, Backend, Batch, GatedMatmul, Matmul, QuantOptions, Quantized,
    QuantizedMatmul, QuantizedMut, Support, Tensor, TensorMut,
};
pub use buffer::HostBuffer;
pub use dispatch::{Dispatch, OpSwitches, Registry, Rejection, Report};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use fp8::{E4M3, E8M0};
pub use half::{bf16, f16};
pub use layout::{ActShape, RowLayout, Rows, RowsMut};
pub use quant::{Quantization, ScaleFormat};
pub use scales::{ScaleLayout, ScaleOrder, Scales, ScalesMut};
pub use weight::{BlockScales, HostWeight};
