//! The functions of the activations on vectors, from exactly rounded operations only: a lane's bits
//! depend neither on the instruction set nor on the other lanes.
//!
//! `scripts/coefficients.py` makes the constants of the approximations again and says how far each
//! is from its function.

pub(crate) mod e4m3;
mod exp;
mod f32;
mod half;
mod silu;

pub(crate) use f32::{bounded, normal, normal_tanh, situ};
pub(crate) use half::{gelu, gelu_tanh, sigmoid, tanh};
pub(crate) use silu::Sigmoid;
