//! Routers and routed experts on the device: every kernel at sizes that take all of its loops, in graphs, and what is
//! refused.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod graphs;
mod kernels;
mod layer;
mod routing;
