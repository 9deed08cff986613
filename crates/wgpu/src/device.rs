//! The device: which adapter it is of, what it allows, and the copies to and from it.

mod adapter;
mod facts;
mod handle;
mod needs;
mod open;
mod queue;

pub use adapter::{ALLOW_SOFTWARE_VARIABLE, AdapterReport};
pub(crate) use adapter::{AdapterChoice, chosen, reasons, software_allowed_by_environment};
pub(crate) use facts::{BindingLimits, Facts};
pub use handle::Device;
pub(crate) use needs::{FEATURES, IMMEDIATE_BYTES, Needs};
pub(crate) use open::{DeviceSettings, OPTIONAL_FEATURES, Subgroups};
pub(crate) use queue::STAGING;
