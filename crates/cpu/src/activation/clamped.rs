//! silu(min(gate, limit)) · clamp(up, ±limit) in whole units: DeepSeek-V4's activation.

use std::ops::Range;

use super::formula::Silu;
use super::lanes::{Lanes, UNIT};
use super::{Output, Piece};
use crate::math::silu_of_usual;
use crate::simd::{Rare, Simd};

impl<T: Lanes, O: Output<T>> Piece<'_, T, O> {
    /// The same as [`Self::each`] with this formula, whose clamp is one that
    /// [`Lanes::load_clamped`] takes, for rows with their gates and ups in halves. One look at a unit
    /// tells whether all of its lanes are usual; a unit that has others goes through the formula.
    #[inline(always)]
    pub(super) fn clamped<S: Simd>(&self, s: S, limit: f32, formula: Silu) {
        let Range { start, end } = self.from.range();
        let first = start + self.output.lead(start).min(end - start);
        let last = end - (end - first) % UNIT;
        let any = |range| Any {
            piece: self,
            range,
            formula,
        };
        if start < first {
            s.apart(any(start..first));
        }
        let [gates, ups] = self.from.halves();
        let next = self.from.next_row::<S>();
        let mut j = first;
        while j < last {
            next.ask(j);
            // SAFETY: the unit's columns are among the piece's, in both halves.
            let clamped = unsafe { T::load_clamped(s, [gates.add(j), ups.add(j)], limit) };
            if let Some([gates, ups]) = clamped {
                let y = [
                    s.mul(silu_of_usual::<S, T>(s, gates[0], 1.0), ups[0]),
                    s.mul(silu_of_usual::<S, T>(s, gates[1], 1.0), ups[1]),
                ];
                // SAFETY: the columns are the piece's own, and whole units from `first` on.
                unsafe { self.output.store_unit(s, j, y) };
            } else {
                s.apart(any(j..j + UNIT));
            }
            j += UNIT;
        }
        if last < end {
            s.apart(any(last..end));
        }
    }
}

/// Some columns of a piece, whatever their values.
struct Any<'a, 'b, T, O> {
    piece: &'a Piece<'b, T, O>,
    range: Range<usize>,
    formula: Silu,
}

impl<S: Simd, T: Lanes, O: Output<T>> Rare<S> for Any<'_, '_, T, O> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let part = Piece {
            from: self.piece.from.part(self.range),
            output: self.piece.output,
        };
        part.each(s, self.formula);
    }
}
