//! The contract that every backend of swiglu answers to.
//!
//! - [`GatedActivation`]: a gated activation as one validated value, from the family's table;
//! - [`Float`], [`Element`]: what is computed on; [`WeightFormat`], [`ScaleFormat`], [`E4M3`],
//!   [`E2M1`], [`E8M0`]: how weights and scales are stored;
//! - [`Tensor`], [`TensorMut`], [`GateUp`]: matrices as views of somebody's memory;
//!   [`RowLayout`]: where their rows lie;
//! - [`Quantization`], [`ScaleLayout`]: how rows become FP8 codes with scales;
//! - [`Backend`], [`ActAndMul`], [`Quantize`], [`Matmul`]: what a backend does; [`Request`],
//!   [`Support`], [`Accuracy`]: what it says of that; [`check`](mod@check): what it checks;
//! - [`reference`](mod@reference): the operation in scalar code, the oracle of every test;
//! - [`Routing`], [`Routes`], [`Experts`]: which experts tokens go to, and their weights;
//!   [`Router`], [`GroupedMatmul`]: a layer of routed experts;
//! - [`Communicator`]: several ranks that add up what each computed;
//! - [`Registry`], [`Report`], [`OpSwitches`]: which backend runs, and why not another.
//!
//! This crate touches no hardware.
#![forbid(unsafe_code)]

mod activation;
mod backend;
mod buffer;
pub mod check;
mod communicator;
mod dispatch;
mod error;
mod experts;
mod float;
mod format;
mod host;
mod layout;
mod quant;
pub mod reference;
mod request;
mod routing;
mod scales;
mod tensor;
mod weight;

pub use activation::{
    Clamp, Function, GatedActivation, Layout, Limit, Operator, Order, Parameter, Parameters,
    Rounding,
};
pub use backend::{
    ActAndMul, Backend, Batch, GroupedMatmul, Matmul, MoeCall, NoWeight, QuantOptions, Quantize,
    Router, SharedCall,
};
pub use buffer::HostBuffer;
pub use communicator::{Communicator, HostCommunicator, LocalCommunicator, check_all_reduce_into};
pub use dispatch::{Dispatch, OpSwitches, OpenOptions, Registry, Rejection, Report};
pub use error::{Error, Result};
pub use experts::{Experts, ExpertsShape};
pub use float::{Element, Float};
pub use format::{E2M1, E4M3, E8M0, ScaleFormat, WeightFormat};
pub use half::{bf16, f16};
pub use host::Halves;
#[doc(hidden)]
pub use host::first_bytes as __first_bytes;
pub use layout::{ActShape, RowLayout};
pub use quant::Quantization;
pub use request::{Accumulation, Accuracy, Request, Shape, Support};
pub use routing::{
    Gate, HostGate, HostRouter, HostRoutes, Routes, Routing, Selection, Token, Tokens, score,
    sort_by_expert,
};
pub use scales::{ScaleLayout, ScaleOrder};
pub use tensor::{GateUp, Quantized, QuantizedMut, Tensor, TensorMut};
pub use weight::HostWeight;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
