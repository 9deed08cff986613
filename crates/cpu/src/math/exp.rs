//! exp(-z), in three precisions.
//!
//! ## Method
//! 1. exp(-z) = 2^(n + t), n an integer and |t| at most 1/2: adding [`ROUND`] to -z · log2(e) leaves
//!    n in the lowest bits of the sum.
//! 2. 2^t for results of 16 bits is a fraction, (even + t · odd) / (even - t · odd): the form of a
//!    Padé approximant of the exponential, whose halves are even and odd in t. A quotient follows
//!    anyway, 1 / (1 + exp), and takes the denominator in.
//! 3. 2^t for f32 is a polynomial: a fraction rounds twice more, which f32 would see.
//! 4. 2^n is an addition to the exponent's bits. Where n leaves the normal numbers' exponents it is
//!    two multiplications, by a power of two each: [`Exponential`].

use crate::simd::Simd;

/// 1.5 · 2^23: adding it rounds to an integer, which is then in the lower bits.
const ROUND: f32 = 12_582_912.0;

/// ln 2 in two parts; the first has enough trailing zeros for exact products with an exponent.
pub(super) const LN_2_HIGH: f32 = 355.0 / 512.0;
pub(super) const LN_2_LOW: f32 = -2.121_944_4e-4;

/// exp(-170) times the largest gate that can stand beside it is below half the smallest subnormal.
pub(super) const DEEPEST: f32 = 170.0;

/// 2^t on ±1/2 as (even + t · odd) / (even - t · odd) with even = a · t² + b and odd = t² + c: the
/// [3/3] Padé form, its coefficients fitted as f32. Relative error 1.6e-8.
const EVEN: [f32; 2] = [17.312_458, 360.336_12];
const ODD: f32 = 124.882_99;

/// 2^t on ±1/2 as a polynomial, from t^6 down, its coefficients fitted as f32. Relative error 8e-9.
pub(super) const EXP_2: [f32; 7] = [
    1.512_665_2e-4,
    1.336_378_6e-3,
    9.619_077e-3,
    5.550_448_2e-2,
    0.240_226_45,
    std::f32::consts::LN_2.next_down(),
    1.0,
];

/// (exp(f) - 1 - f) / f² on ±ln 2 / 2 as a polynomial, from f^5 down: that of Cephes' expf. Error
/// 2.5e-8, and of exp an eighth of that at the most.
pub(super) const EXP_TAIL: [f32; 6] = [
    1.987_569_1e-4,
    1.398_2e-3,
    8.333_452e-3,
    4.166_579_6e-2,
    1.666_666_5e-1,
    0.5,
];

/// A polynomial by Horner, its coefficients from the highest power down.
#[inline(always)]
pub(super) fn polynomial<S: Simd, const N: usize>(s: S, x: S::F, coefficients: &[f32; N]) -> S::F {
    let mut p = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        p = s.fma(p, x, s.splat(c));
    }
    p
}

/// -z · log2(e) = n + t: n in the lowest bits, and t.
#[inline(always)]
pub(super) fn reduce<S: Simd>(s: S, z: S::F) -> (S::I, S::F) {
    let shifted = s.fma(z, s.splat(-std::f32::consts::LOG2_E), s.splat(ROUND));
    let minus_n = s.sub(s.splat(ROUND), shifted);
    let t = s.fma(z, s.splat(-std::f32::consts::LOG2_E), minus_n);
    (s.bits(shifted), t)
}

/// The integer n next to -a · log2(e), as a float, and 2^n: a is from 0 to 86.
#[inline(always)]
pub(super) fn whole<S: Simd>(s: S, a: S::F) -> (S::F, S::F) {
    let shifted = s.fma(a, s.splat(-std::f32::consts::LOG2_E), s.splat(ROUND));
    let power = s.add_u32(s.shl::<23>(s.bits(shifted)), s.splat_u32(1.0_f32.to_bits()));
    (s.sub(shifted, s.splat(ROUND)), s.float(power))
}

/// The even and odd of 2^t as a fraction.
#[inline(always)]
pub(super) fn pade<S: Simd>(s: S, t: S::F) -> (S::F, S::F) {
    let square = s.mul(t, t);
    let [a, b] = [s.splat(EVEN[0]), s.splat(EVEN[1])];
    (s.fma(square, a, b), s.add(square, s.splat(ODD)))
}

/// p · 2^(first + second), each power a normal f32.
pub(super) struct Exponential<S: Simd> {
    p: S::F,
    first: S::F,
    second: S::F,
}

impl<S: Simd> Exponential<S> {
    /// x · exp, rounded once more only where the result is subnormal.
    #[inline(always)]
    pub(super) fn times(&self, s: S, x: S::F) -> S::F {
        s.mul(s.mul(s.mul(x, self.p), self.first), self.second)
    }

    #[inline(always)]
    pub(super) fn value(&self, s: S) -> S::F {
        s.mul(s.mul(self.p, self.first), self.second)
    }
}

/// exp(-|z + low|) for f32, where `low` is what z lost in rounding. |z| beyond [`DEEPEST`] counts as
/// that.
#[inline(always)]
pub(super) fn exp_of_minus_abs<S: Simd>(s: S, z: S::F, low: S::F) -> Exponential<S> {
    let a = s.clamp_above(s.abs(z), s.splat(DEEPEST));
    // |z + low| = |z| + low where z is positive, |z| - low where it is negative.
    let negative = s.lt(z, s.splat(0.0));
    let low = s.select(negative, s.neg(low), low);
    let shifted = s.fma(a, s.splat(-std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let f = s.neg(s.fma(n, s.splat(LN_2_HIGH), a));
    let f = s.sub(s.fma(n, s.splat(-LN_2_LOW), f), low);
    let p = polynomial(s, f, &EXP_TAIL);
    let p = s.add(s.fma(s.mul(f, f), p, f), s.splat(1.0));
    // n is from -246 to 0: halves of it, made positive so that a shift rounds down.
    let integer = s.add_u32(
        s.bits(shifted),
        s.splat_u32(256_u32.wrapping_sub(ROUND.to_bits())),
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
