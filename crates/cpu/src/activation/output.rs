use swiglu_core::{GatedActivation, reference};

use super::lanes::{Lanes, UNIT};
use crate::simd::Simd;

/// Where results go, by their column.
pub(crate) trait Output<T: Lanes>: Copy {
    /// Stores the first `count` of a unit at the columns from `j` on.
    ///
    /// # Safety
    /// The columns lie within the row, and nothing else uses them meanwhile.
    unsafe fn store<S: Simd>(self, s: S, j: usize, y: [S::F; 2], count: usize);

    /// Stores a whole unit that begins where [`Self::lead`] is 0.
    ///
    /// # Safety
    /// As [`Self::store`].
    unsafe fn store_unit<S: Simd>(self, s: S, j: usize, y: [S::F; 2]);

    /// Computes and stores one column by the reference.
    ///
    /// # Safety
    /// As [`Self::store`].
    unsafe fn evaluate(self, j: usize, op: &GatedActivation, gate: T, up: T);

    /// How many columns from `j` on are best stored before whole units are.
    fn lead(self, j: usize) -> usize {
        let _ = j;
        0
    }
}

/// A row of results in their own type.
impl<T: Lanes> Output<T> for *mut T {
    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, j: usize, y: [S::F; 2], count: usize) {
        // SAFETY: the caller vouches for the columns; so below.
        let to = unsafe { self.add(j) };
        if count == UNIT {
            // SAFETY: a unit of columns.
            return unsafe { T::store(s, to, y) };
        }
        // SAFETY: as above.
        unsafe { store_few(s, to, y, count) }
    }

    #[inline(always)]
    unsafe fn store_unit<S: Simd>(self, s: S, j: usize, y: [S::F; 2]) {
        // SAFETY: as above.
        unsafe { T::store(s, self.add(j), y) }
    }

    unsafe fn evaluate(self, j: usize, op: &GatedActivation, gate: T, up: T) {
        // SAFETY: as above.
        unsafe { self.add(j).write(reference::gated(op, gate, up)) }
    }
}

/// # Safety
/// `count` elements can be written.
#[inline(always)]
unsafe fn store_few<S: Simd, T: Lanes>(s: S, to: *mut T, y: [S::F; 2], count: usize) {
    let mut few = [T::default(); UNIT];
    // SAFETY: the array is a unit, of which `count` are copied.
    unsafe {
        T::store(s, few.as_mut_ptr(), y);
        to.copy_from_nonoverlapping(few.as_ptr(), count);
    }
}

/// The same, written past the caches, which a [fence](crate::simd::fence) must follow.
#[derive(Clone, Copy)]
pub(super) struct Streamed<T>(pub(super) *mut T);

impl<T: Lanes> Output<T> for Streamed<T> {
    #[inline(always)]
    unsafe fn store<S: Simd>(self, s: S, j: usize, y: [S::F; 2], count: usize) {
        if count == UNIT && self.lead(j) == 0 {
            // SAFETY: as the caller says.
            return unsafe { self.store_unit(s, j, y) };
        }
        // SAFETY: as above.
        unsafe { store_few(s, self.0.add(j), y, count) }
    }

    #[inline(always)]
    unsafe fn store_unit<S: Simd>(self, s: S, j: usize, y: [S::F; 2]) {
        // SAFETY: a unit of columns from an address as the instructions want it.
        unsafe { T::stream(s, self.0.add(j), y) }
    }

    unsafe fn evaluate(self, j: usize, op: &GatedActivation, gate: T, up: T) {
        // SAFETY: as above.
        unsafe { self.0.evaluate(j, op, gate, up) }
    }

    /// Up to the next address that is a multiple of a unit of T.
    #[inline(always)]
    fn lead(self, j: usize) -> usize {
        let past = self.0.wrapping_add(j).addr() % (UNIT * size_of::<T>());
        if past == 0 {
            0
        } else {
            UNIT - past / size_of::<T>()
        }
    }
}
