//! The functions that few models use. They are vectors, and the reference computes the lanes that
//! these do not hold for; of SiTU in f32 all of them.

use std::ops::Range;

use swiglu_core::Float;

use super::{Destination, Piece, Visit};
use crate::element::{UNIT, VectorElement};
use crate::math::{gelu, gelu_tanh, normal, normal_tanh, sigmoid, tanh};
use crate::simd::{Outlined, Simd};

/// f(gate) · g(up) on vectors.
pub(super) trait Approximate: Copy {
    /// Where [`Self::of`] holds, with a sign: gates above this, which are together with their ups
    /// below [`HUGE`].
    const ABOVE: f32;

    /// The same of [`Self::share`].
    const ABOVE_IN_F32: f32;

    /// f and g, rounded rightly to 16 bits almost everywhere.
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> [S::F; 2];

    /// What of the gate f is, for results of f32.
    fn share<S: Simd>(self, s: S, gate: S::F) -> S::F;
}

/// Where a function holds for a type.
const fn above<T: VectorElement, F: Approximate>() -> f32 {
    match T::FLOAT {
        Float::F32 => F::ABOVE_IN_F32,
        _ => F::ABOVE,
    }
}

/// What neither half may reach: NaN and what overflows on the way is beyond.
const HUGE: f32 = 1e30;

/// x/2 · (1 + erf(x/√2)) of gates.
#[derive(Clone, Copy)]
pub(super) struct Gelu;

impl Approximate for Gelu {
    const ABOVE: f32 = -12.6;
    const ABOVE_IN_F32: f32 = -5.0;

    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> [S::F; 2] {
        [gelu(s, gate), up]
    }

    #[inline(always)]
    fn share<S: Simd>(self, s: S, gate: S::F) -> S::F {
        normal(s, gate)
    }
}

/// x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))) of gates.
#[derive(Clone, Copy)]
pub(super) struct GeluTanh;

impl Approximate for GeluTanh {
    const ABOVE: f32 = -9.6;
    const ABOVE_IN_F32: f32 = -4.5;

    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> [S::F; 2] {
        [gelu_tanh(s, gate), up]
    }

    #[inline(always)]
    fn share<S: Simd>(self, s: S, gate: S::F) -> S::F {
        normal_tanh(s, gate)
    }
}

/// beta · tanh(gate/beta) · sigmoid(gate) and, with a bound, bound · tanh(up/bound).
#[derive(Clone, Copy)]
pub(super) struct Situ {
    pub(super) beta: f32,
    pub(super) up_bound: Option<f32>,
}

impl Approximate for Situ {
    const ABOVE: f32 = -79.0;
    // Nowhere: f32 has no room for what two tanh and a sigmoid lose.
    const ABOVE_IN_F32: f32 = f32::INFINITY;

    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> [S::F; 2] {
        let up = match self.up_bound {
            Some(bound) => bounded(s, up, bound),
            None => up,
        };
        [s.mul(bounded(s, gate, self.beta), sigmoid(s, gate)), up]
    }

    #[inline(always)]
    fn share<S: Simd>(self, s: S, _: S::F) -> S::F {
        s.splat(0.0)
    }
}

/// bound · tanh(x/bound).
#[inline(always)]
fn bounded<S: Simd>(s: S, x: S::F, bound: f32) -> S::F {
    let bound = s.splat(bound);
    s.mul(bound, tanh(s, s.div(x, bound)))
}

/// Stores a function's values, and the reference's where it does not hold.
pub(super) struct Mended<'a, 'b, T, F> {
    pub(super) piece: &'a Piece<'b, T>,
    /// The piece's.
    pub(super) to: Destination<T>,
    pub(super) function: F,
    pub(super) eager: bool,
}

impl<S: Simd, T: VectorElement, F: Approximate> Outlined<S> for Mended<'_, '_, T, F> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, s: S) {
        let from = &self.piece.from;
        let range = from.range();
        from.each(s, &range, self.to.lead(range.start), &mut self);
    }
}

impl<S: Simd, T: VectorElement, F: Approximate> Visit<S> for Mended<'_, '_, T, F> {
    #[inline(always)]
    fn visit(&mut self, s: S, j: usize, count: usize, gates: [S::F; 2], ups: [S::F; 2]) {
        let y = [
            self.value(s, gates[0], ups[0]),
            self.value(s, gates[1], ups[1]),
        ];
        // SAFETY: the columns are the piece's own.
        unsafe { self.to.store(s, j, y, count) };
        let above = above::<T, F>();
        if !(holds(s, above, gates[0], ups[0]) && holds(s, above, gates[1], ups[1])) {
            mend(self.piece, j..j + count.min(UNIT), above);
        }
    }
}

impl<T: VectorElement, F: Approximate> Mended<'_, '_, T, F> {
    #[inline(always)]
    fn value<S: Simd>(&self, s: S, gate: S::F, up: S::F) -> S::F {
        if T::FLOAT == Float::F32 {
            let share = self.function.share(s, gate);
            // Unless that is asked for, f is not rounded: that of the least gates would lose bits.
            return if self.eager {
                s.mul(s.mul(share, gate), up)
            } else {
                s.mul(share, s.mul(gate, up))
            };
        }
        let [f, up] = self.function.of(s, gate, up);
        if self.eager {
            s.mul(T::round(s, f), T::round(s, up))
        } else {
            s.mul(f, up)
        }
    }
}

/// Whether a function holds for every lane: above this gate.
#[inline(always)]
fn holds<S: Simd>(s: S, above: f32, gate: S::F, up: S::F) -> bool {
    let larger = s.float(s.max_u32(s.bits(s.abs(gate)), s.bits(s.abs(up))));
    s.all(s.lt(s.splat(above), gate)) && s.all(s.lt(larger, s.splat(HUGE)))
}

/// Computes those columns of a unit by the reference that a function does not hold for. A lane's bits
/// do not depend on the others.
#[cold]
#[inline(never)]
fn mend<T: VectorElement>(piece: &Piece<'_, T>, columns: Range<usize>, above: f32) {
    let Piece { from, to } = piece;
    for j in columns {
        let (gate, up) = from.pair(j);
        let [x, u] = [gate.to_f32(), up.to_f32()];
        if !(x > above && x.abs() < HUGE && u.abs() < HUGE) {
            // SAFETY: the columns are the piece's own.
            unsafe { to.evaluate(j, &from.activation().op, gate, up) };
        }
    }
}
