//! Functions for results of f32: what f32's arithmetic loses on the way counts, and is carried along.

use super::exp::{DEEPEST, exp_of_minus_abs, polynomial};
use crate::simd::Simd;

/// No gate of more matters: beyond it [`normal`] is 0 or 1.
const FARTHEST: f32 = 12.625;

/// (Φ(x) - 1/2) / x, Φ the normal distribution, for |x| at most 1: a polynomial of degree 5 in x², from
/// x^10 down. Relative error 3.3e-8, half a unit in the last place of its constant term.
const NEAR: [f32; 6] = [
    -7.628_864_8e-6,
    1.134_301_9e-4,
    -1.186_287_3e-3,
    9.973_311e-3,
    -6.649_036e-2,
    0.398_942_3,
];

/// The normal distribution's tail beyond a, P(X > a), times exp(a²/2), on [1, 5]: a polynomial of
/// degree 7 in q = (a - 3) / (a + 3), from q^7 down to q, and the constant by itself, for q's rounding
/// error to be added to it. Relative error 7.6e-9.
const TAIL: [f32; 7] = [
    -3.946_969_5e-4,
    -9.715_979e-4,
    2.916_546e-3,
    6.132_371e-3,
    -4.621_412_2e-2,
    1.232_249_8e-1,
    -2.064_026e-1,
];

const TAIL_CONSTANT: f32 = 1.215_139_5e-1;

/// (1 + erf(x/√2)) / 2 for f32, x above -5.
#[inline(always)]
pub(crate) fn normal<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.clamp_above(s.abs(x), s.splat(FARTHEST));
    let half = s.mul(a, s.splat(0.5));
    let z = s.mul(half, a);
    let e = exp_of_minus_abs(s, z, s.fma(half, a, s.neg(z)));
    let three = s.splat(3.0);
    // The difference is exact; what the sum and the quotient lose is made good.
    let (over, under) = (s.sub(a, three), s.add(a, three));
    let under_low = s.sub(a, s.sub(under, three));
    let q = s.div(over, under);
    let lost = s.fma(s.neg(q), under_low, s.fma(s.neg(q), under, over));
    let q_low = s.div(lost, under);
    let slope = polynomial(s, q, &TAIL);
    let last = s.fma(slope, q_low, s.splat(TAIL_CONSTANT));
    let beyond = e.times(s, s.fma(slope, q, last));
    let below = s.sub(s.splat(1.0), beyond);
    let far = s.select(s.lt(x, s.splat(0.0)), beyond, below);
    let near = polynomial(s, s.mul(x, x), &NEAR);
    let near = s.fma(x, near, s.splat(0.5));
    s.select(s.lt(a, s.splat(1.0)), near, far)
}

/// 2 √(2/π) and 0.044715 times that, and what each lost in rounding to f32.
const LINEAR: [f32; 2] = [1.595_769_2, -4.534_068e-8];
const CUBIC: [f32; 2] = [0.071_354_814, 2.398_832_5e-9];

/// (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2 for f32, x above -4.5: beyond, the cubic term is the larger
/// one of the sum, whose rounding error is then another.
#[inline(always)]
pub(crate) fn normal_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let [linear, cubic] = [LINEAR, CUBIC].map(|c| c.map(|c| s.splat(c)));
    let square = s.mul(x, x);
    let square_low = s.fma(x, x, s.neg(square));
    let term = s.mul(square, cubic[0]);
    let term_low = s.fma(square, cubic[0], s.neg(term));
    let term_low = s.fma(square_low, cubic[0], s.fma(square, cubic[1], term_low));
    let sum = s.add(linear[0], term);
    let sum_low = s.add(
        s.sub(term, s.sub(sum, linear[0])),
        s.add(term_low, linear[1]),
    );
    let z = s.mul(x, sum);
    let low = s.fma(x, sum_low, s.fma(x, sum, s.neg(z)));
    // What overflowed has no rounding error that counts.
    let low = s.select(s.lt(s.abs(z), s.splat(DEEPEST)), low, s.splat(0.0));
    let e = exp_of_minus_abs(s, z, low).value(s);
    let over = s.select(s.lt(z, s.splat(0.0)), e, s.splat(1.0));
    s.div(over, s.add(s.splat(1.0), e))
}
