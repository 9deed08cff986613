//! Marks code that seldom runs.

/// Says that the branch which calls it is seldom taken, so that the compiler keeps registers and the
/// straight way for the other. It is `std::hint::cold_path`, which came with Rust 1.95.
#[cold]
#[inline]
pub(crate) const fn cold_path() {}
