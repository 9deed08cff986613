//! Quantization beyond the common suite: bare pointers, captured calls, and matmuls of codes.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../common/mod.rs"]
mod device;
mod matmuls;
mod mlp;
mod raw;
mod sizes;
