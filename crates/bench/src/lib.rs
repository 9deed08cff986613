//! What the benches share: their command line, cases that take turns, and the rows that they print.
//!
//! Each bench prints tables, or with `--csv` the rows of `records/`: section, case, figure, unit, value.
#![forbid(unsafe_code)]

#[cfg(feature = "cpu")]
mod limit;
mod report;
mod routed;
mod turns;

#[cfg(feature = "cpu")]
pub use limit::{fma_limit, unit_limit};
pub use report::{Figure, Options, Report, figure};
pub use routed::{ROUTINGS, requests, routings};
pub use turns::{Passes, in_turn, median};
