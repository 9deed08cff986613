use std::ops::Range;

use swiglu_core::{Backend, GateUp, Layout, Order, Result, RowLayout};

use super::KnownActivation;
use crate::element::{UNIT, VectorElement};
use crate::simd::{self, Simd};

/// The input of an activation: rows of gates and ups.
#[derive(Clone, Copy)]
pub(crate) enum GateUpRows<'a, T> {
    /// In one matrix \[T, 2d\], each row as the activation's layout and order say.
    Merged(Matrix<'a, T>),
    /// In two \[T, d\].
    Split {
        gate: Matrix<'a, T>,
        up: Matrix<'a, T>,
    },
}

/// Elements, and where in them rows lie.
type Matrix<'a, T> = (&'a [T], RowLayout);

impl<'a, T: VectorElement> GateUpRows<'a, T> {
    /// The input must have passed its check.
    ///
    /// # Errors
    /// Memory that is not aligned to T.
    pub(crate) fn new<B: Backend<View<'a> = &'a [u8]>>(input: &GateUp<'a, B>) -> Result<Self> {
        Ok(match input {
            GateUp::Merged(x) => Self::Merged((x.typed("input")?, x.layout)),
            GateUp::Split { gate, up } => Self::Split {
                gate: (gate.typed("gate")?, gate.layout),
                up: (up.typed("up")?, up.layout),
            },
        })
    }

    /// Some columns of a row.
    pub(crate) fn columns(
        &self,
        activation: &'a KnownActivation,
        row: usize,
        range: Range<usize>,
    ) -> Columns<'a, T> {
        match *self {
            Self::Merged((x, layout)) => {
                Columns::new(activation, &x[layout.row(row)], layout.stride, range)
            }
            Self::Split {
                gate: (gates, gate),
                up: (ups, up),
            } => {
                let (gates, ups) = (&gates[gate.row(row)], &ups[up.row(row)]);
                let row = GateUpRow::Apart { gates, ups };
                Columns::of(activation, row, [gate.stride, up.stride], range)
            }
        }
    }
}

/// A run of columns of one row of input.
pub(crate) struct Columns<'a, T> {
    activation: &'a KnownActivation,
    row: GateUpRow<'a, T>,
    /// Elements from a row to the next one's, of the gates and of the ups.
    strides: [usize; 2],
    /// Within the d columns.
    range: Range<usize>,
}

/// Where a row's gates and ups lie.
#[derive(Clone, Copy)]
enum GateUpRow<'a, T> {
    /// Apart, d elements each: in the halves of a row, or in two tensors.
    Apart { gates: &'a [T], ups: &'a [T] },
    /// In turns, 2d elements.
    Interleaved { pairs: &'a [T], order: Order },
}

/// Bytes up to which a row fits beside the next one into the second-level cache.
const FAR: usize = 64 << 10;

/// The row after one, to be prefetched. Processors foresee a stream up to the end of a page only, and
/// half a row is a page or two.
#[derive(Clone, Copy)]
pub(super) struct NextRow<T> {
    from: [*const T; 2],
    /// Whether both rows fit into the first-level cache.
    near: bool,
    far: bool,
}

impl<T> NextRow<T> {
    /// Prefetches a unit of both, `at` elements on.
    #[inline(always)]
    pub(super) fn prefetch(&self, at: usize) {
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

impl<'a, T: VectorElement> Columns<'a, T> {
    /// Columns of a row of 2d elements, within its d results. The next row begins `stride` elements
    /// on.
    pub(crate) fn new(
        activation: &'a KnownActivation,
        row: &'a [T],
        stride: usize,
        range: Range<usize>,
    ) -> Self {
        let (layout, order) = (activation.op.layout(), activation.op.order());
        let row = match layout {
            Layout::Interleaved => GateUpRow::Interleaved { pairs: row, order },
            Layout::Concatenated => {
                let (first, second) = row.split_at(row.len() / 2);
                let (gates, ups) = match order {
                    Order::GateFirst => (first, second),
                    Order::UpFirst => (second, first),
                };
                GateUpRow::Apart { gates, ups }
            }
        };
        Self::of(activation, row, [stride; 2], range)
    }

    fn of(
        activation: &'a KnownActivation,
        row: GateUpRow<'a, T>,
        strides: [usize; 2],
        range: Range<usize>,
    ) -> Self {
        let d = match row {
            GateUpRow::Apart { gates, ups } => gates.len().min(ups.len()),
            GateUpRow::Interleaved { pairs, .. } => pairs.len() / 2,
        };
        assert!(range.end <= d, "columns lie within their row");
        Self {
            activation,
            row,
            strides,
            range,
        }
    }

    /// Some of the columns.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.range.end, "a part of the columns");
        Self { range, ..*self }
    }

    pub(crate) const fn activation(&self) -> &'a KnownActivation {
        self.activation
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The gate and the up of a column.
    pub(super) fn pair(&self, j: usize) -> (T, T) {
        match self.row {
            GateUpRow::Apart { gates, ups } => (gates[j], ups[j]),
            GateUpRow::Interleaved { pairs, order } => match order {
                Order::GateFirst => (pairs[2 * j], pairs[2 * j + 1]),
                Order::UpFirst => (pairs[2 * j + 1], pairs[2 * j]),
            },
        }
    }

    /// Visits `range`, which lies within the columns, in units, the first with `lead` columns if that
    /// is not 0. Where they are fewer than [`UNIT`] they are padded with zeros, so that they are
    /// computed alike.
    #[inline(always)]
    pub(crate) fn each<S: Simd>(
        &self,
        s: S,
        range: &Range<usize>,
        lead: usize,
        visit: &mut impl Visit<S>,
    ) {
        assert!(range.end <= self.range.end, "a part of the columns");
        // In locals: what is stored might otherwise lie in memory that this reads again.
        let (row, next) = (self.row, self.next_row::<S>());
        let mut j = range.start;
        let mut room = if lead == 0 { UNIT } else { lead };
        while j < range.end {
            let count = room.min(range.end - j);
            let (gates, ups) = if count == UNIT {
                // SAFETY: a unit of columns lies within the range, and that within the row.
                unsafe { row.load(s, next, j) }
            } else {
                self.load_few(s, j, count)
            };
            visit.visit(s, j, count, gates, ups);
            j += count;
            room = UNIT;
        }
    }

    /// Where the gates and the ups begin, if they are apart.
    #[inline(always)]
    pub(super) fn apart(&self) -> Option<[*const T; 2]> {
        match self.row {
            GateUpRow::Apart { gates, ups } => Some([gates.as_ptr(), ups.as_ptr()]),
            GateUpRow::Interleaved { .. } => None,
        }
    }

    /// What is prefetched while this row is gone through.
    pub(super) fn next_row<S: Simd>(&self) -> NextRow<T> {
        let (length, [a, b]) = match self.row {
            GateUpRow::Apart { gates, ups } => (2 * gates.len(), [gates.as_ptr(), ups.as_ptr()]),
            GateUpRow::Interleaved { pairs, .. } => {
                let row = pairs.as_ptr();
                (pairs.len(), [row, row.wrapping_add(UNIT)])
            }
        };
        let bytes = length * size_of::<T>();
        NextRow {
            from: [
                a.wrapping_add(self.strides[0]),
                b.wrapping_add(self.strides[1]),
            ],
            near: bytes <= S::PREFETCHED_ROW,
            far: bytes <= FAR,
        }
    }

    /// The gates and ups of fewer columns, padded with zeros.
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

impl<T: VectorElement> GateUpRow<'_, T> {
    /// The gates and ups of the [`UNIT`] columns from `j` on.
    ///
    /// # Safety
    /// They lie within the row.
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, next: NextRow<T>, j: usize) -> ([S::F; 2], [S::F; 2]) {
        match self {
            Self::Apart { gates, ups } => {
                next.prefetch(j);
                // SAFETY: the columns from j to j + UNIT have their places in both; so below.
                unsafe {
                    (
                        T::load(s, gates.as_ptr().add(j)),
                        T::load(s, ups.as_ptr().add(j)),
                    )
                }
            }
            Self::Interleaved { pairs, order } => {
                next.prefetch(2 * j);
                // SAFETY: as above.
                let [even, odd] = unsafe { T::load_alternating(s, pairs.as_ptr().add(2 * j)) };
                match order {
                    Order::GateFirst => (even, odd),
                    Order::UpFirst => (odd, even),
                }
            }
        }
    }
}
