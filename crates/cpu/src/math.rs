//! The functions of the activations on vectors, from exactly rounded operations only.

use swiglu_core::DType;

use crate::activation::Lanes;
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

/// exp on ±ln 2 / 2 by a minimax polynomial of degree 6, within 2.6e-9, and of degree 5, within
/// 4.4e-7: a thousandth of bf16's last place.
const EXP_6: [f32; 7] = [
    1.406_127_7e-3,
    8.379_021e-3,
    4.166_477_5e-2,
    1.666_636_5e-1,
    0.500_000_06,
    1.0,
    1.0,
];
const EXP_5: [f32; 6] = [
    6.953_328e-3,
    4.187_531_4e-2,
    1.668_765_8e-1,
    0.499_993_74,
    0.999_993_74,
    1.0,
];

/// Below this magnitude of alpha · x neither the exponential nor 1 plus it leaves the normal numbers.
pub(crate) const USUAL: f32 = 80.0;

/// x · sigmoid(alpha · x), to be rounded to T. A lane's bits do not depend on the others.
#[inline(always)]
pub(crate) fn silu<S: Simd, T: Lanes>(s: S, x: S::F, alpha: f32) -> S::F {
    let y = silu_of_usual::<S, T>(s, x, alpha);
    let usual = s.lt(s.abs(s.mul(s.splat(alpha), x)), s.splat(USUAL));
    if s.all(usual) {
        return y;
    }
    s.select(usual, y, silu_anywhere(s, x, s.splat(alpha)))
}

/// The same where |alpha · x| is below [`USUAL`].
#[inline(always)]
pub(crate) fn silu_of_usual<S: Simd, T: Lanes>(s: S, x: S::F, alpha: f32) -> S::F {
    let narrow = T::DTYPE != DType::F32;
    let z = match alpha {
        1.0 => x,
        _ => s.mul(s.splat(alpha), x),
    };
    let shifted = s.fma(z, s.splat(-std::f32::consts::LOG2_E), s.splat(MAGIC));
    let n = s.sub(shifted, s.splat(MAGIC));
    // -z - n · ln 2. Results of 16 bits see neither what z nor what ln 2 lost in rounding.
    let f = if narrow {
        s.neg(s.fma(n, s.splat(std::f32::consts::LN_2), z))
    } else {
        let f = s.neg(s.fma(n, s.splat(LN_2_HIGH), z));
        s.fma(n, s.splat(-LN_2_LOW), f)
    };
    let f = if narrow || alpha == 1.0 {
        f
    } else {
        s.sub(f, s.fma(s.splat(alpha), x, s.neg(z)))
    };
    let p = match T::DTYPE {
        DType::BF16 => polynomial(s, f, &EXP_5),
        _ => polynomial(s, f, &EXP_6),
    };
    // n is in the lowest bits.
    let e = s.float(s.add_u32(s.bits(p), s.shl::<23>(s.bits(shifted))));
    s.div(x, s.add(s.splat(1.0), e))
}

/// Coefficients from the highest power on, by Horner.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: &[f32; N]) -> S::F {
    let mut p = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        p = s.fma(p, x, s.splat(c));
    }
    p
}

/// x · sigmoid(alpha · x), whatever x and alpha.
#[inline(always)]
fn silu_anywhere<S: Simd>(s: S, x: S::F, alpha: S::F) -> S::F {
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
