//! x · sigmoid(alpha · x), to be rounded to any of the three floats.

use swiglu_core::Float;

use super::exp::{EXP_2, pade, polynomial, reduce};
use crate::element::{USUAL, VectorElement};
use crate::simd::Simd;

/// What log2(e) lost in rounding to f32.
const LOG2_E_LOW: f32 = 1.925_963e-8;

/// The sigmoid of alpha · x as what multiplies a number: a divisor in f32, a factor in 16 bits, where
/// |alpha · x| is below [`USUAL`]. It is a normal number, so that numbers and their products keep
/// their bits until they meet it.
#[derive(Clone, Copy)]
pub(crate) struct Sigmoid<S: Simd> {
    /// alpha · x, by which a caller tells whether it is below [`USUAL`].
    pub(crate) z: S::F,
    value: S::F,
}

impl<S: Simd> Sigmoid<S> {
    #[inline(always)]
    pub(crate) fn new<T: VectorElement>(s: S, x: S::F, alpha: f32) -> Self {
        let z = match alpha {
            1.0 => x,
            _ => s.mul(s.splat(alpha), x),
        };
        let (n, t) = reduce(s, z);
        let n = s.shl::<23>(n);
        let t = s.fma(z, s.splat(-LOG2_E_LOW), t);
        let t = match alpha {
            1.0 => t,
            _ => {
                let low = s.fma(s.splat(alpha), x, s.neg(z));
                s.fma(low, s.splat(-std::f32::consts::LOG2_E), t)
            }
        };
        if T::FLOAT == Float::F32 {
            let p = polynomial(s, t, &EXP_2);
            let e = s.float(s.add_u32(s.bits(p), n));
            let value = s.add(s.splat(1.0), e);
            return Self { z, value };
        }
        let (even, odd) = pade(s, t);
        let (over, under) = (s.fma(t, odd, even), s.fma(s.neg(t), odd, even));
        let over = s.float(s.add_u32(s.bits(over), n));
        let value = s.div(under, s.add(under, over));
        Self { z, value }
    }

    /// a · sigmoid.
    #[inline(always)]
    pub(crate) fn times<T: VectorElement>(self, s: S, a: S::F) -> S::F {
        match T::FLOAT {
            Float::F32 => s.div(a, self.value),
            Float::F16 | Float::BF16 => s.mul(a, self.value),
        }
    }

    /// Whether it holds, lane by lane.
    #[inline(always)]
    pub(crate) fn holds(self, s: S) -> S::M {
        s.lt(s.abs(self.z), s.splat(USUAL))
    }
}
