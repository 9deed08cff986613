//! Matrix units: products of tiles, [16 rows, 32 k] by [32 k, 16 outputs] of bf16 to [16, 16] of f32.
//!
//! ## Method
//! 1. A tile is 16 rows of 64 bytes, one after another. Those of rows of x hold 32 k of bf16; those of
//!    weights hold, for each pair of k, the 16 outputs' two elements side by side, which is how a
//!    panel of bf16 lies ([`crate::weight`]); sums are 16 f32 a row.
//! 2. A thread makes itself [`Ready`] before its first product, and is released by dropping that.
//! 3. [`Ready::multiply`] adds the products of up to two tiles of rows by up to two panels over some
//!    steps of 32 k. The unit is AMX, or plain Rust that gives the same numbers, so that all around it is
//!    tested on any machine.

use std::marker::PhantomData;

use super::InstructionSet;

/// Rows, and outputs, of a tile of sums.
pub(crate) const SIDE: usize = 16;
/// k of a step.
pub(crate) const DEPTH: usize = 32;
/// Elements of a tile of bf16.
pub(crate) const TILE: usize = SIDE * DEPTH;
/// Most tiles of rows, and most panels, that are multiplied at a time.
pub(crate) const SIDES: usize = 2;

/// Tiles to be multiplied.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "only the unit itself prefetches")
)]
#[derive(Clone, Copy)]
pub(crate) struct TileProduct {
    /// How many tiles of rows, and how many panels, are multiplied: 1 or 2 each.
    pub(crate) rows: usize,
    pub(crate) panels: usize,
    /// The rows' tiles: for each step as many as there are, one after another.
    pub(crate) x: *const u16,
    /// Each panel's tiles, a step after a step.
    pub(crate) w: [*const u16; SIDES],
    /// Each panel's sums, a tile of rows after the other.
    pub(crate) sums: [*mut f32; SIDES],
    pub(crate) steps: usize,
    /// Whether sums begin with this product, and not with what is in memory.
    pub(crate) begins: bool,
    /// Whether the next step's tiles of x are brought into the first-level cache meanwhile, and not
    /// those of the panels: what was not used just before.
    pub(crate) x_ahead: bool,
    /// What will be needed later, to be brought into the second-level cache: from each of these
    /// addresses on so many cache lines a step. No address is wrong.
    pub(crate) later: [*const u8; SIDES],
    pub(crate) lines: usize,
}

/// A thread whose matrix unit is ready. It stays on the thread.
pub(crate) struct Ready {
    set: InstructionSet,
    on_this_thread: PhantomData<*const ()>,
}

impl Ready {
    /// Makes this thread's unit ready.
    ///
    /// # Safety
    /// The machine has the instruction set, and it has a matrix unit.
    pub(crate) unsafe fn new(set: InstructionSet) -> Self {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if set == InstructionSet::Amx {
            // SAFETY: the caller vouches for the unit.
            unsafe { super::amx::configure() };
        }
        Self {
            set,
            on_this_thread: PhantomData,
        }
    }

    /// About so many products of tiles that are in registers, where the unit has registers for them:
    /// how many there were.
    pub(crate) fn products(&self, count: usize) -> usize {
        match self.set {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: the unit was configured.
            InstructionSet::Amx => unsafe { super::amx::products(count) },
            _ => {
                let _ = count;
                0
            }
        }
    }

    /// Adds a product to its sums.
    ///
    /// # Safety
    /// The tiles that [`TileProduct`] describes can be read, and the sums written.
    pub(crate) unsafe fn multiply(&self, product: &TileProduct) {
        match self.set {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: the caller vouches for the tiles, and the unit was configured.
            InstructionSet::Amx => unsafe { super::amx::multiply(product) },
            // SAFETY: as above.
            _ => unsafe { super::emulated::multiply(product) },
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.set == InstructionSet::Amx {
            // SAFETY: this thread's unit was configured.
            unsafe { super::amx::release() };
        }
    }
}
