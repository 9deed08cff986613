//! Silu with what models put around it, and FATReLU: exact operations but for silu itself.

use std::ops::Range;

use super::{Destination, Piece, SiluClamp, Visit};
use crate::element::VectorElement;
use crate::math::silu;
use crate::simd::{Outlined, Simd};

/// A gated activation on vectors, before its last rounding to T. Every NaN is the canonical one.
pub(super) trait Formula<T: VectorElement>: Copy {
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F;
}

/// silu(gate) · up.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl<T: VectorElement> Formula<T> for Plain {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        s.canonical(s.mul(silu::<S, T>(s, gate, 1.0), up))
    }
}

/// Every activation with silu.
#[derive(Clone, Copy)]
pub(super) struct Silu {
    pub(super) alpha: f32,
    pub(super) clamp: SiluClamp,
    pub(super) up_offset: f32,
    pub(super) eager: bool,
}

impl<T: VectorElement> Formula<T> for Silu {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        let (gate, up) = match self.clamp {
            SiluClamp::Before(l) => {
                let gate = s.clamp_above(gate, s.splat(l));
                (self.round::<S, T>(s, gate), both(s, up, l))
            }
            SiluClamp::After(l) => (gate, both(s, up, l)),
            SiluClamp::None => (gate, up),
        };
        let f = self.round::<S, T>(s, silu::<S, T>(s, gate, self.alpha));
        let f = match self.clamp {
            SiluClamp::After(l) => self.round::<S, T>(s, s.clamp_above(f, s.splat(l))),
            SiluClamp::Before(_) | SiluClamp::None => f,
        };
        // Adding an offset of 0 would take an up of -0 to +0.
        let up = match self.up_offset {
            0.0 => up,
            offset => s.add(up, s.splat(offset)),
        };
        s.canonical(s.mul(f, self.round::<S, T>(s, up)))
    }
}

impl Silu {
    /// The limit of silu(min(gate, limit)) · clamp(up, ±limit), if that is all.
    pub(super) fn only_clamps(self) -> Option<f32> {
        match self.clamp {
            SiluClamp::Before(limit)
                if self.alpha == 1.0 && self.up_offset == 0.0 && !self.eager =>
            {
                Some(limit)
            }
            _ => None,
        }
    }

    /// What is between, rounded in mode Eager.
    #[inline(always)]
    fn round<S: Simd, T: VectorElement>(self, s: S, a: S::F) -> S::F {
        if self.eager {
            T::round(s, s.canonical(a))
        } else {
            a
        }
    }
}

/// (gate > threshold ? gate : 0) · up.
#[derive(Clone, Copy)]
pub(super) struct FatRelu {
    pub(super) threshold: f32,
}

impl<T: VectorElement> Formula<T> for FatRelu {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> S::F {
        // Not "above the threshold", which would take a NaN to 0.
        let above = s.lt(s.splat(self.threshold), gate);
        let kept = s.select(s.is_nan(gate), gate, s.splat(0.0));
        s.canonical(s.mul(s.select(above, gate, kept), up))
    }
}

/// clamp(x, -limit, limit) that lets NaN through.
#[inline(always)]
fn both<S: Simd>(s: S, x: S::F, limit: f32) -> S::F {
    s.clamp_below(s.clamp_above(x, s.splat(limit)), s.splat(-limit))
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
