//! The device: which adapter it is of, what it allows, and the copies to and from it.

mod adapter;
mod facts;
mod handle;
mod open;
mod queue;

pub use adapter::{ALLOW_SOFTWARE_VARIABLE, AdapterReport, adapters, probe};
pub(crate) use adapter::{IMMEDIATE_BYTES, ranked, reasons, software_allowed_by_environment};
pub(crate) use facts::{BindingLimits, Facts};
pub use handle::Device;
pub(crate) use open::{DeviceSettings, Subgroups};
pub(crate) use queue::STAGING;
