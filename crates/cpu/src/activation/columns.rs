use std::ops::Range;

use swiglu_core::{GatedActivation, Layout, Order};

use super::lanes::{Lanes, UNIT};
use crate::simd::{self, Simd};

/// A run of columns of one row of input.
pub(crate) struct Columns<'a, T> {
    op: &'a GatedActivation,
    /// The whole row, 2d elements.
    row: &'a [T],
    /// Within the d columns.
    range: Range<usize>,
}

/// Bytes up to which a row fits beside the next one into the second-level cache.
const FAR: usize = 64 << 10;

/// The row after one. Processors foresee a stream up to the end of a page only, and half a row is a
/// page or two; so it is asked for meanwhile.
#[derive(Clone, Copy)]
pub(super) struct NextRow<T> {
    from: [*const T; 2],
    /// Whether both rows fit into the first-level cache.
    near: bool,
    far: bool,
}

impl<T> NextRow<T> {
    /// Asks for a unit of both, `at` elements on.
    #[inline(always)]
    pub(super) fn ask(&self, at: usize) {
        for from in self.from {
            for line in (0..UNIT * size_of::<T>()).step_by(64) {
                let from = from.wrapping_add(at).wrapping_byte_add(line);
                if self.near {
                    simd::prefetch(from);
                } else if self.far {
                    simd::prefetch_second_level(from);
                }
            }
        }
    }
}

/// What is done with the gates and ups of columns.
///
/// A trait and no closure: only a method can be told to be inlined always, and what is not inlined
/// into a kernel does not have its instruction set.
pub(crate) trait Visit<S: Simd> {
    /// Takes a unit whose first column is `j` and that has `count` of them, zeros beyond.
    fn visit(&mut self, s: S, j: usize, count: usize, gates: [S::F; 2], ups: [S::F; 2]);
}

impl<'a, T: Lanes> Columns<'a, T> {
    /// Columns of a row of 2d elements, within its d results.
    pub(crate) fn new(op: &'a GatedActivation, row: &'a [T], range: Range<usize>) -> Self {
        assert!(range.end <= row.len() / 2, "columns lie within their row");
        Self { op, row, range }
    }

    /// Some of these columns.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        Self::new(self.op, self.row, range)
    }

    pub(crate) const fn op(&self) -> &'a GatedActivation {
        self.op
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The gate and the up of a column.
    pub(crate) fn pair(&self, j: usize) -> (T, T) {
        let (gate, up) = self.op.positions(self.row.len() / 2, j);
        (self.row[gate], self.row[up])
    }

    /// Visits all columns in units, the first with `lead` columns if that is not 0. Where they are
    /// fewer than [`UNIT`] they are padded with zeros, so that they are computed alike.
    #[inline(always)]
    pub(crate) fn each<S: Simd>(&self, s: S, lead: usize, visit: &mut impl Visit<S>) {
        let Range { start, end } = self.range;
        let first = self.starts();
        let next = self.next_row::<S>();
        let mut j = start;
        let mut room = if lead == 0 { UNIT } else { lead };
        while j < end {
            let count = room.min(end - j);
            let (gates, ups) = if count == UNIT {
                // SAFETY: a unit of columns lies within the range, and that within the row.
                unsafe { self.load(s, first, &next, j) }
            } else {
                self.load_few(s, j, count)
            };
            visit.visit(s, j, count, gates, ups);
            j += count;
            room = UNIT;
        }
    }

    /// The places of the gate and the up of column 0.
    #[inline(always)]
    fn starts(&self) -> [usize; 2] {
        self.op.positions(self.row.len() / 2, 0).into()
    }

    /// Where the gates and the ups of a row begin that has them in halves.
    pub(super) fn halves(&self) -> [*const T; 2] {
        self.starts().map(|at| self.row.as_ptr().wrapping_add(at))
    }

    /// What is asked for while this row is gone through.
    pub(super) fn next_row<S: Simd>(&self) -> NextRow<T> {
        let length = size_of_val(self.row);
        let [a, b] = match self.op.layout() {
            Layout::Concatenated => [0, self.row.len() / 2],
            Layout::Interleaved => [0, UNIT],
        };
        let row = self.row.as_ptr().wrapping_byte_add(length);
        NextRow {
            from: [row.wrapping_add(a), row.wrapping_add(b)],
            near: length <= S::ROW_AHEAD,
            far: length <= FAR,
        }
    }

    /// The gates and ups of the [`UNIT`] columns from `j` on; those of column 0 are at `first`.
    ///
    /// # Safety
    /// They lie within the row.
    #[inline(always)]
    unsafe fn load<S: Simd>(
        &self,
        s: S,
        first: [usize; 2],
        next: &NextRow<T>,
        j: usize,
    ) -> ([S::F; 2], [S::F; 2]) {
        let row = self.row.as_ptr();
        let [a, b] = match self.op.layout() {
            Layout::Concatenated => [first[0] + j, first[1] + j],
            Layout::Interleaved => [2 * j, 2 * j + UNIT],
        };
        next.ask(a.min(b));
        match (self.op.layout(), self.op.order()) {
            (Layout::Concatenated, _) => {
                // SAFETY: the columns from j to j + UNIT have their places in the row; so below.
                unsafe { (T::load(s, row.add(a)), T::load(s, row.add(b))) }
            }
            (Layout::Interleaved, order) => {
                // SAFETY: as above.
                let [even, odd] = unsafe { T::load_alternating(s, row.add(a)) };
                match order {
                    Order::GateFirst => (even, odd),
                    Order::UpFirst => (odd, even),
                }
            }
        }
    }

    /// The same of fewer columns, padded with zeros.
    #[inline(always)]
    fn load_few<S: Simd>(&self, s: S, j: usize, count: usize) -> ([S::F; 2], [S::F; 2]) {
        let (mut gates, mut ups) = ([T::default(); UNIT], [T::default(); UNIT]);
        for lane in 0..count {
            (gates[lane], ups[lane]) = self.pair(j + lane);
        }
        // SAFETY: the arrays are units.
        unsafe { (T::load(s, gates.as_ptr()), T::load(s, ups.as_ptr())) }
    }
}
