//! The functions of the activations on vectors, from exactly rounded operations only.

use crate::simd::Simd;

/// 1.5 · 2^23: adding it rounds to an integer, which is then in the lower bits.
const MAGIC: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has enough trailing zeros for exact products with an exponent.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// exp(-170) times the largest gate that can stand beside it is below half the smallest subnormal.
const DEEPEST: f32 = 170.0;

/// p · 2^(first + second), each power a normal f32.
pub(crate) struct Exponential<S: Simd> {
    p: S::F,
    first: S::F,
    second: S::F,
}

impl<S: Simd> Exponential<S> {
    /// x · exp, rounded once more only where the result is subnormal.
    #[inline(always)]
    pub(crate) fn times(&self, s: S, x: S::F) -> S::F {
        s.mul(s.mul(s.mul(x, self.p), self.first), self.second)
    }

    #[inline(always)]
    pub(crate) fn value(&self, s: S) -> S::F {
        s.mul(s.mul(self.p, self.first), self.second)
    }
}

/// exp(-|z + low|), where `low` is what z lost in rounding.
#[inline(always)]
pub(crate) fn exp_of_minus_abs<S: Simd>(s: S, z: S::F, low: S::F) -> Exponential<S> {
    let a = s.clamp_above(s.abs(z), s.splat(DEEPEST));
    // |z + low| = |z| + low where z is positive, |z| - low where it is negative.
    let negative = s.lt(z, s.splat(0.0));
    let low = s.select(negative, s.neg(low), low);
    let shifted = s.fma(a, s.splat(-std::f32::consts::LOG2_E), s.splat(MAGIC));
    let n = s.sub(shifted, s.splat(MAGIC));
    let f = s.neg(s.fma(n, s.splat(LN_2_HIGH), a));
    let f = s.sub(s.fma(n, s.splat(-LN_2_LOW), f), low);
    // exp(f) - 1 - f over f², |f| at most ln 2 / 2: a minimax polynomial.
    let mut p = s.splat(1.987_569_1e-4);
    for c in [
        1.398_2e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = s.fma(p, f, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(f, f), p, f), s.splat(1.0));
    // n is from -246 to 0: halves of it, made positive so that a shift rounds down.
    let integer = s.add_u32(
        s.bits(shifted),
        s.splat_u32(256_u32.wrapping_sub(MAGIC.to_bits())),
    );
    let first = s.shr::<1>(integer);
    // The other half is the same or one more.
    let second = s.add_u32(first, s.and(integer, s.splat_u32(1)));
    // 2^(half - 128), biased.
    let power =
        |half| s.float(s.shl::<23>(s.add_u32(half, s.splat_u32(127_u32.wrapping_sub(128)))));
    Exponential {
        p,
        first: power(first),
        second: power(second),
    }
}

/// x · sigmoid(alpha · x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::F, alpha: S::F) -> S::F {
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
