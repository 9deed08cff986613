//! Packed weights: what Hopper's decode steps and warpgroups give, and every other way that reads such a weight.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod extremes;
mod gated;
mod graphs;
mod quantizing;
mod sums;
mod warpgroups;
mod weights;
