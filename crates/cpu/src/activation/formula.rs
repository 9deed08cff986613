//! Columns of a piece by a formula: what is computed on vectors with exact operations around silu.

use std::ops::Range;

use super::{Destination, Piece, Visit};
use crate::element::VectorElement;
use crate::simd::{Outlined, Simd};

/// A gated activation on vectors, before its last rounding to T. Every NaN is the canonical one.
pub(super) trait Formula<T: VectorElement>: Copy {
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F;
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
            to,
            formula: self.formula,
        };
        self.piece.from.each(s, &self.range, lead, &mut store);
    }
}

/// Stores what a formula gives.
struct Store<T, F> {
    to: Destination<T>,
    formula: F,
}

impl<S: Simd, T: VectorElement, F: Formula<T>> Visit<S> for Store<T, F> {
    #[inline(always)]
    fn visit(&mut self, s: S, j: usize, count: usize, gates: [S::F; 2], ups: [S::F; 2]) {
        let f = self.formula;
        let y = [f.of(s, gates[0], ups[0]), f.of(s, gates[1], ups[1])];
        // SAFETY: the columns are the piece's own.
        unsafe { self.to.store(s, j, y, count) }
    }
}
