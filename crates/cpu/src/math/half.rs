//! Functions for results of 16 bits: right to that in f32's arithmetic.

use super::exp::{pade, polynomial, reduce};
use crate::element::USUAL;
use crate::simd::Simd;

/// exp(-z) as a fraction, |z| at most [`USUAL`].
#[inline(always)]
fn exp_of_minus<S: Simd>(s: S, z: S::F) -> [S::F; 2] {
    let (n, t) = reduce(s, z);
    let (even, odd) = pade(s, t);
    let over = s.bits(s.fma(t, odd, even));
    let over = s.float(s.add_u32(over, s.shl::<23>(n)));
    [over, s.fma(s.neg(t), odd, even)]
}

/// 1 / (1 + exp(-x)), x above -[`USUAL`].
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let [over, under] = exp_of_minus(s, s.clamp_above(x, s.splat(USUAL - 1.0)));
    s.div(under, s.add(under, over))
}

/// tanh, of numbers.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let twice = s.clamp_above(s.abs(s.add(x, x)), s.splat(USUAL - 1.0));
    let (n, t) = reduce(s, twice);
    let (even, odd) = pade(s, t);
    let odd = s.mul(t, odd);
    // With exp(-2|x|) = p · (even + odd) / (even - odd), where 1 - exp(-2|x|) does not cancel.
    let p = s.float(s.add_u32(s.shl::<23>(n), s.splat_u32(1.0_f32.to_bits())));
    let (less, more) = (s.sub(s.splat(1.0), p), s.add(s.splat(1.0), p));
    let over = s.fma(less, even, s.neg(s.mul(more, odd)));
    let under = s.fma(more, even, s.neg(s.mul(less, odd)));
    let sign = s.and(s.bits(x), s.splat_u32(1 << 31));
    s.float(s.or(s.bits(s.div(over, under)), sign))
}

/// 2 √(2/π), and 0.044715 times that.
const LINEAR: f32 = 1.595_769_2;
const CUBIC: f32 = 0.071_354_814;

/// x · sigmoid(2 √(2/π) (x + 0.044715 x³)), x above -9.6.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let cubic = s.fma(s.mul(x, x), s.splat(CUBIC), s.splat(LINEAR));
    s.mul(x, sigmoid(s, s.mul(x, cubic)))
}

/// The normal distribution's tail beyond a, P(X > a), times exp(a²/2), on [0, 12.7]: a polynomial of
/// degree 9 in q = (a - 3) / (a + 3), from q^9 down. Relative error 7.9e-8.
const TAIL: [f32; 10] = [
    5.687_323_6e-5,
    1.183_574_5e-4,
    -3.431_419_3e-4,
    -9.863_576e-4,
    2.906_12e-3,
    6.132_739_6e-3,
    -4.621_354_5e-2,
    1.232_25e-1,
    -2.064_026_1e-1,
    1.215_139_5e-1,
];

/// Where [`TAIL`] ends.
const FARTHEST: f32 = 12.625;

/// x/2 · (1 + erf(x/√2)), x above -12.6.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.clamp_above(s.abs(x), s.splat(FARTHEST));
    let [over, under] = exp_of_minus(s, s.mul(s.mul(a, s.splat(0.5)), a));
    let three = s.splat(3.0);
    let q = s.div(s.sub(a, three), s.add(a, three));
    let p = polynomial(s, q, &TAIL);
    let beyond = s.div(s.mul(p, over), under);
    let below = s.sub(s.splat(1.0), beyond);
    s.mul(x, s.select(s.lt(x, s.splat(0.0)), beyond, below))
}
