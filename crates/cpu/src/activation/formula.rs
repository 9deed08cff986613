//! Columns of a piece by a formula: what is computed on vectors, and by the reference where vectors do
//! not hold.

use crate::cold::cold_path;
use std::ops::Range;

use super::{Destination, Piece, Visit};
use crate::element::{UNIT, VectorElement};
use crate::simd::{LANES, Outlined, Simd};

/// A gated activation on vectors, before its last rounding to T.
pub(super) trait Formula<T: VectorElement>: Copy {
    /// A unit of results. A lane is left to the reference by a result that is no finite number: where
    /// the vectors do not hold, where numbers on the way leave f32 while the result may not, and where
    /// the result is infinite or NaN indeed.
    fn of<S: Simd>(self, s: S, gates: [S::F; 2], ups: [S::F; 2]) -> [S::F; 2];
}

/// Columns of a piece by a formula.
pub(super) struct Each<'a, 'b, T, F> {
    pub(super) piece: &'a Piece<'b, T>,
    /// Within the piece's.
    pub(super) range: Range<usize>,
    pub(super) formula: F,
}

impl<S: Simd, T: VectorElement, F: Formula<T>> Outlined<S> for Each<'_, '_, T, F> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let to = self.piece.to;
        let lead = to.lead(self.range.start);
        let mut store = Store {
            piece: self.piece,
            to,
            formula: self.formula,
        };
        self.piece.from.each(s, &self.range, lead, &mut store);
    }
}

/// Stores what a formula gives, and the reference's where it gives nothing or its rounding is in doubt.
struct Store<'a, 'b, T, F> {
    piece: &'a Piece<'b, T>,
    /// The piece's.
    to: Destination<T>,
    formula: F,
}

impl<S: Simd, T: VectorElement, F: Formula<T>> Visit<S> for Store<'_, '_, T, F> {
    #[inline(always)]
    fn visit(&mut self, s: S, j: usize, count: usize, gates: [S::F; 2], ups: [S::F; 2]) {
        let y = self.formula.of(s, gates, ups);
        // SAFETY: the columns are the piece's own.
        let near_tie = unsafe { self.to.store(s, j, y, count) };
        let largest = s.float(s.max_u32(s.bits(s.abs(y[0])), s.bits(s.abs(y[1]))));
        if near_tie || !s.all(s.lt(largest, s.splat(f32::INFINITY))) {
            cold_path();
            mend(s, self.piece, j..j + count, y);
        }
    }
}

/// Has the reference compute what a formula left to it of a unit, and what may be rounded wrongly.
#[inline(always)]
pub(super) fn mend<S: Simd, T: VectorElement>(
    s: S,
    piece: &Piece<'_, T>,
    columns: Range<usize>,
    y: [S::F; 2],
) {
    let mut lanes = [0.0; UNIT];
    // SAFETY: the array is two vectors.
    unsafe {
        s.store_f32(lanes.as_mut_ptr(), y[0]);
        s.store_f32(lanes.as_mut_ptr().add(LANES), y[1]);
    }
    mend_lanes(piece, columns, &lanes);
}

/// Computes those columns of a unit by the reference whose lanes are not finite or near a tie. A lane's
/// bits do not depend on the others.
#[cold]
#[inline(never)]
fn mend_lanes<T: VectorElement>(piece: &Piece<'_, T>, columns: Range<usize>, lanes: &[f32; UNIT]) {
    let Piece { from, to } = piece;
    let start = columns.start;
    for j in columns {
        let y = lanes[T::place(j - start)];
        if !y.is_finite() || to.is_near_tie(y) {
            let (gate, up) = from.pair(j);
            // SAFETY: the columns are the piece's own.
            unsafe { to.evaluate(j, &from.activation().op, gate, up) };
        }
    }
}
