//! x · sigmoid(alpha · x), to be rounded to any of the three floats.

use std::hint::cold_path;

use swiglu_core::Float;

use super::exp::{DEEPEST, EXP_2, exp_of_minus_abs, pade_2, pade_3, polynomial, reduce};
use crate::element::{USUAL, VectorElement};
use crate::simd::{Outlined, Simd};

/// What log2(e) lost in rounding to f32.
const LOG2_E_LOW: f32 = 1.925_963e-8;

/// x · sigmoid(alpha · x), to be rounded to T. A lane's bits do not depend on the others.
#[inline(always)]
pub(crate) fn silu<S: Simd, T: VectorElement>(s: S, x: S::F, alpha: f32) -> S::F {
    let y = silu_of_usual::<S, T>(s, x, alpha);
    let usual = s.lt(s.abs(s.mul(s.splat(alpha), x)), s.splat(USUAL));
    if s.all(usual) {
        return y;
    }
    cold_path();
    s.select(usual, y, s.call(Anywhere::<S> { x, alpha }))
}

/// The same where |alpha · x| is below [`USUAL`].
#[inline(always)]
pub(crate) fn silu_of_usual<S: Simd, T: VectorElement>(s: S, x: S::F, alpha: f32) -> S::F {
    let z = match alpha {
        1.0 => x,
        _ => s.mul(s.splat(alpha), x),
    };
    let (n, t) = reduce(s, z);
    let n = s.shl::<23>(n);
    if T::FLOAT == Float::F32 {
        let t = s.fma(z, s.splat(-LOG2_E_LOW), t);
        let t = match alpha {
            1.0 => t,
            _ => {
                let low = s.fma(s.splat(alpha), x, s.neg(z));
                s.fma(low, s.splat(-std::f32::consts::LOG2_E), t)
            }
        };
        let p = polynomial(s, t, &EXP_2);
        let e = s.float(s.add_u32(s.bits(p), n));
        return s.div(x, s.add(s.splat(1.0), e));
    }
    // Results of 16 bits see neither what log2(e) nor what z lost in rounding.
    let (even, odd) = if T::FLOAT == Float::BF16 {
        pade_2(s, t)
    } else {
        pade_3(s, t)
    };
    let (over, under) = (s.fma(t, odd, even), s.fma(s.neg(t), odd, even));
    let over = s.float(s.add_u32(s.bits(over), n));
    s.mul(x, s.div(under, s.add(under, over)))
}

/// x · sigmoid(alpha · x), whatever x and alpha.
struct Anywhere<S: Simd> {
    x: S::F,
    alpha: f32,
}

impl<S: Simd> Outlined<S> for Anywhere<S> {
    type Output = S::F;

    #[inline(always)]
    fn run(self, s: S) -> S::F {
        let Self { x, alpha } = self;
        let alpha = s.splat(alpha);
        let z = s.mul(alpha, x);
        let low = s.fma(alpha, x, s.neg(z));
        // Beyond the deepest argument the remainder belongs to a number that is not used.
        let low = s.select(s.lt(s.abs(z), s.splat(DEEPEST)), low, s.splat(0.0));
        let e = exp_of_minus_abs(s, z, low);
        // The exponential stops falling at its deepest argument, so the gate must not grow on.
        let bounded = s.clamp_below(x, s.div(s.splat(-DEEPEST), alpha));
        let numerator = s.select(s.lt(z, s.splat(0.0)), e.times(s, bounded), x);
        let y = s.div(numerator, s.add(s.splat(1.0), e.value(s)));
        // exp of the deepest argument is not 0, so that -inf · 0 has to be said.
        let infinite = s.lt(x, s.splat(-f32::MAX));
        s.select(infinite, s.splat(f32::NAN), y)
    }
}
