//! silu(min(gate, limit)) · clamp(up, ±limit) in whole units: DeepSeek-V4's activation.

use crate::cold::cold_path;
use std::ops::Range;

use super::Piece;
use super::destination::Kind;
use super::formula::{Each, mend};
use super::functions::Silu;
use crate::element::{UNIT, VectorElement};
use crate::math::Sigmoid;
use crate::simd::{Outlined, Simd};

/// The same as [`Each`] with this formula, whose clamp is one that [`VectorElement::load_clamped`]
/// takes, for rows with their gates and ups apart. One look at a unit tells whether all of its lanes
/// are usual; a unit that has others goes through the formula.
pub(super) struct Clamped<'a, 'b, T> {
    pub(super) piece: &'a Piece<'b, T>,
    pub(super) limit: f32,
    pub(super) formula: Silu,
}

/// The kinds of [`Kind`] as constants, so that the loop has no branch on them.
const STORED: u8 = 0;
const STREAMED: u8 = 1;
const OTHER: u8 = 2;

impl<S: Simd, T: VectorElement> Outlined<S> for Clamped<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, s: S) {
        let Piece { from, to } = self.piece;
        let Range { start, end } = from.range();
        let Some([gates, ups]) = from.apart() else {
            return s.call(self.any(start..end));
        };
        let first = start + to.lead(start).min(end - start);
        let last = end - (end - first) % UNIT;
        if start < first {
            s.call(self.any(start..first));
        }
        let apart = [gates, ups];
        // SAFETY: the columns are the piece's own, and whole units from `first` on.
        unsafe {
            match to.kind() {
                Kind::Stored => self.units::<S, STORED>(s, apart, first..last),
                Kind::Streamed => self.units::<S, STREAMED>(s, apart, first..last),
                Kind::Widened { .. } | Kind::Routed { .. } => {
                    self.units::<S, OTHER>(s, apart, first..last);
                }
            }
        }
        if last < end {
            s.call(self.any(last..end));
        }
    }
}

impl<'a, 'b, T: VectorElement> Clamped<'a, 'b, T> {
    /// Whole units of columns.
    ///
    /// # Safety
    /// They are the piece's own and begin where [`super::Destination::lead`] is 0.
    #[inline(always)]
    unsafe fn units<S: Simd, const KIND: u8>(
        &self,
        s: S,
        [gates, ups]: [*const T; 2],
        range: Range<usize>,
    ) {
        // In locals: what is stored might otherwise lie in memory that this reads again.
        let (to, limit) = (self.piece.to, self.limit);
        let next = self.piece.from.next_row::<S>();
        let mut j = range.start;
        while j < range.end {
            next.prefetch(j);
            // SAFETY: the unit's columns are among the piece's, in both halves.
            let clamped = unsafe { T::load_clamped(s, [gates.add(j), ups.add(j)], limit) };
            if let Some([gates, ups]) = clamped {
                let y = [
                    product::<S, T>(s, gates[0], ups[0]),
                    product::<S, T>(s, gates[1], ups[1]),
                ];
                // SAFETY: the caller vouches for the columns.
                let near_tie = unsafe {
                    match KIND {
                        STORED => to.store_unit_as(Kind::Stored, s, j, y),
                        STREAMED => to.store_unit_as(Kind::Streamed, s, j, y),
                        _ => to.store_unit(s, j, y),
                    }
                };
                if near_tie {
                    cold_path();
                    mend(s, self.piece, j..j + UNIT, y);
                }
            } else {
                cold_path();
                s.call(self.any(j..j + UNIT));
            }
            j += UNIT;
        }
    }

    /// Some of the columns, whatever their values.
    #[inline(always)]
    fn any(&self, range: Range<usize>) -> Each<'a, 'b, T, Silu> {
        Each {
            piece: self.piece,
            range,
            formula: self.formula,
        }
    }
}

/// silu(gate) · up as [`Silu`] computes it.
#[inline(always)]
fn product<S: Simd, T: VectorElement>(s: S, gate: S::F, up: S::F) -> S::F {
    let sigmoid = Sigmoid::new::<T>(s, gate, 1.0);
    sigmoid.times::<T>(s, s.mul(gate, up))
}
