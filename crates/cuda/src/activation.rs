//! Activations: what is compiled, how a call is cut into launches, and the launches.

mod call;
mod family;
#[cfg(test)]
mod instances;
mod kernels;
mod plan;
mod slices;

pub use call::{Batches, RawActCall, RawGateUp};
pub(crate) use family::{Form, Forms};
pub use kernels::Activations;
pub(crate) use kernels::{Rounded, compiled_forms, form_of, scalars, support, unsupported};
pub(crate) use plan::LAUNCH_THREADS;
