//! Activations: what of one a kernel reads, which kernel runs, and its dispatches.

mod op;
mod plan;
mod record;

pub(crate) use op::check_known;
pub(crate) use plan::{ActivationPlan, ActivationSpans, is_native};
pub(crate) use record::{InputColumns, record};
