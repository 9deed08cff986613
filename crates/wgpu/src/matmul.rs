//! Matmuls: which kernels multiply a window of tokens by a buffer of the weight, and the dispatches.

mod gated;
mod plan;
mod record;

pub(crate) use gated::{GatedOperands, GatedPlan, record as record_gated};
pub(crate) use plan::{MatmulOperands, MatmulPlan};
pub(crate) use record::{prepare, record, record_halves};
