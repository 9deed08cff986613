//! Few tokens on Hopper: what its decode steps and warpgroups give by packed weights, every other way that reads such a
//! weight, and weights in bf16 by tensor maps.
// Helpers beside the tests unwrap as the tests do.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod extremes;
mod gated;
mod graphs;
mod mapped;
mod quantizing;
mod sums;
mod warpgroups;
mod weights;
