//! The functions that few models use. They are vectors, and the reference computes the lanes that
//! these do not hold for.

use crate::cold::cold_path;

use swiglu_core::Float;

use super::formula::Formula;
use crate::element::VectorElement;
use crate::math::{self, gelu, gelu_tanh, normal, normal_tanh, sigmoid, tanh};
use crate::simd::Simd;

/// f(gate) · g(up) on vectors.
pub(super) trait Approximate: Copy {
    /// Where [`Self::of`] holds, with a sign: gates above this, which are together with their ups
    /// below [`HUGE`].
    fn above(self) -> f32;

    /// The same of [`Self::in_f32`].
    fn above_in_f32(self) -> f32;

    /// f and g, rounded rightly to 16 bits almost everywhere.
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> [S::F; 2];

    /// f(gate) · g(up) for results of f32. What is `eager` has each rounded by itself.
    fn in_f32<S: Simd>(self, s: S, gate: S::F, up: S::F, eager: bool) -> S::F;
}

/// f · up of an f that is a share of the gate.
#[inline(always)]
fn of_share<S: Simd>(s: S, share: S::F, gate: S::F, up: S::F, eager: bool) -> S::F {
    // Unless that is asked for, f is not rounded: that of the least gates would lose bits.
    if eager {
        s.mul(s.mul(share, gate), up)
    } else {
        s.mul(share, s.mul(gate, up))
    }
}

/// What neither half may reach: NaN and what overflows on the way is beyond.
const HUGE: f32 = 1e30;

/// x/2 · (1 + erf(x/√2)) of gates.
#[derive(Clone, Copy)]
pub(super) struct Gelu;

impl Approximate for Gelu {
    #[inline(always)]
    fn above_in_f32(self) -> f32 {
        -5.0
    }

    #[inline(always)]
    fn above(self) -> f32 {
        -12.6
    }

    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> [S::F; 2] {
        [gelu(s, gate), up]
    }

    #[inline(always)]
    fn in_f32<S: Simd>(self, s: S, gate: S::F, up: S::F, eager: bool) -> S::F {
        of_share(s, normal(s, gate), gate, up, eager)
    }
}

/// x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))) of gates.
#[derive(Clone, Copy)]
pub(super) struct GeluTanh;

impl Approximate for GeluTanh {
    #[inline(always)]
    fn above_in_f32(self) -> f32 {
        -4.5
    }

    #[inline(always)]
    fn above(self) -> f32 {
        -9.6
    }

    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> [S::F; 2] {
        [gelu_tanh(s, gate), up]
    }

    #[inline(always)]
    fn in_f32<S: Simd>(self, s: S, gate: S::F, up: S::F, eager: bool) -> S::F {
        of_share(s, normal_tanh(s, gate), gate, up, eager)
    }
}

/// beta · tanh(gate/beta) · sigmoid(gate) and, with a bound, bound · tanh(up/bound).
#[derive(Clone, Copy)]
pub(super) struct Situ {
    pub(super) beta: f32,
    pub(super) up_bound: Option<f32>,
}

impl Approximate for Situ {
    #[inline(always)]
    fn above_in_f32(self) -> f32 {
        let range = 2f32.powi(-80)..2f32.powi(100);
        let holds = range.contains(&self.beta) && self.up_bound.is_none_or(|b| range.contains(&b));
        if holds { -79.0 } else { f32::INFINITY }
    }

    #[inline(always)]
    fn above(self) -> f32 {
        // Of smaller bounds f or g is subnormal, while the result may not be.
        let underflows = self.beta < 2f32.powi(-8) || self.up_bound.is_some_and(|b| b < 1e-30);
        if underflows { f32::INFINITY } else { -79.0 }
    }

    #[inline(always)]
    fn of<S: Simd>(self, s: S, gate: S::F, up: S::F) -> [S::F; 2] {
        let up = match self.up_bound {
            Some(bound) => bounded(s, up, bound),
            None => up,
        };
        [s.mul(bounded(s, gate, self.beta), sigmoid(s, gate)), up]
    }

    #[inline(always)]
    fn in_f32<S: Simd>(self, s: S, gate: S::F, up: S::F, _: bool) -> S::F {
        // Each is right to little more than its own rounding, so that a product of both is, too.
        let f = math::situ(s, gate, self.beta);
        let up = match self.up_bound {
            Some(bound) => math::bounded(s, up, bound),
            None => up,
        };
        // What f of a gate lost to the subnormal numbers.
        let nothing = s.lt(s.abs(gate), s.splat(f32::from_bits(1)));
        let normal = s.lt(s.splat(LEAST_IN_F32), s.abs(f));
        let y = s.mul(f, up);
        s.select(normal, y, s.select(nothing, y, s.splat(f32::NAN)))
    }
}

/// Magnitudes of SiTU above which nothing was subnormal on the way to it.
const LEAST_IN_F32: f32 = f32::from_bits((127 - 90) << 23);

/// bound · tanh(x/bound).
#[inline(always)]
fn bounded<S: Simd>(s: S, x: S::F, bound: f32) -> S::F {
    let bound = s.splat(bound);
    let share = s.div(x, bound);
    // Where tanh is its argument to 2⁻²³, x loses nothing to a quotient that underflows.
    let linear = s.lt(s.abs(share), s.splat(LINEAR));
    s.select(linear, x, s.mul(bound, tanh(s, share)))
}

/// Magnitudes below which tanh(x) is x for results of 16 bits.
const LINEAR: f32 = 1.0 / 2048.0;

/// A function's values, where it holds.
#[derive(Clone, Copy)]
pub(super) struct WhereItHolds<F> {
    pub(super) function: F,
    pub(super) eager: bool,
}

impl<T: VectorElement, F: Approximate> Formula<T> for WhereItHolds<F> {
    #[inline(always)]
    fn of<S: Simd>(self, s: S, gates: [S::F; 2], ups: [S::F; 2]) -> [S::F; 2] {
        let y = [
            self.value::<S, T>(s, gates[0], ups[0]),
            self.value::<S, T>(s, gates[1], ups[1]),
        ];
        let sizes = [
            self.size::<S, T>(s, gates[0], ups[0]),
            self.size::<S, T>(s, gates[1], ups[1]),
        ];
        let huge = s.splat(HUGE);
        let largest = s.float(s.max_u32(s.bits(sizes[0]), s.bits(sizes[1])));
        if s.all(s.lt(largest, huge)) {
            return y;
        }
        cold_path();
        let nan = s.splat(f32::NAN);
        [
            s.select(s.lt(sizes[0], huge), y[0], nan),
            s.select(s.lt(sizes[1], huge), y[1], nan),
        ]
    }
}

impl<F: Approximate> WhereItHolds<F> {
    #[inline(always)]
    fn value<S: Simd, T: VectorElement>(&self, s: S, gate: S::F, up: S::F) -> S::F {
        if T::FLOAT == Float::F32 {
            return self.function.in_f32(s, gate, up, self.eager);
        }
        let [f, up] = self.function.of(s, gate, up);
        if self.eager {
            s.mul(T::round(s, f), T::round(s, up))
        } else {
            s.mul(f, up)
        }
    }

    /// The larger magnitude of a gate and its up; infinity where the function does not hold for the
    /// gate.
    #[inline(always)]
    fn size<S: Simd, T: VectorElement>(&self, s: S, gate: S::F, up: S::F) -> S::F {
        let above = match T::FLOAT {
            Float::F32 => self.function.above_in_f32(),
            Float::F16 | Float::BF16 => self.function.above(),
        };
        let larger = s.float(s.max_u32(s.bits(s.abs(gate)), s.bits(s.abs(up))));
        s.select(s.lt(s.splat(above), gate), larger, s.splat(f32::INFINITY))
    }
}
