//! What the processor says of itself.

use std::arch::x86_64::{__cpuid_count, CpuidResult};

/// A leaf of the instruction `cpuid`, and a sub-leaf of it.
#[allow(unused_unsafe, reason = "the intrinsic was unsafe before Rust 1.94")]
pub(crate) fn cpuid(leaf: u32, sub_leaf: u32) -> CpuidResult {
    // SAFETY: every processor of x86-64 has the instruction.
    unsafe { __cpuid_count(leaf, sub_leaf) }
}

/// Whether the processor is AMD's.
pub(crate) fn is_amd() -> bool {
    cpuid(0, 0).ebx == u32::from_le_bytes(*b"Auth")
}
