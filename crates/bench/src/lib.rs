//! What the benches share: their command line, cases that take turns, and the rows that they print.
//!
//! Each bench prints tables, or with `--csv` the rows of `records/`: section, case, figure, unit, value.
#![forbid(unsafe_code)]

mod report;
mod turns;

pub use report::{Figure, Options, Report, figure};
pub use turns::{Passes, in_turn, median};
