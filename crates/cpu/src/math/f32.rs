//! Functions for results of f32: what f32's arithmetic loses on the way counts, and is carried along.

use super::exp::{DEEPEST, EXP_TAIL, LN_2_HIGH, LN_2_LOW, exp_of_minus_abs, polynomial, whole};
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
    let linear = [s.splat(LINEAR[0]), s.splat(LINEAR[1])];
    let cubic = [s.splat(CUBIC[0]), s.splat(CUBIC[1])];
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

/// A number as a sum of two, the second a small part of the first.
#[derive(Clone, Copy)]
struct Pair<S: Simd>([S::F; 2]);

impl<S: Simd> Pair<S> {
    /// big + small + rest, where `big` is 0 or not below `small`.
    #[inline(always)]
    fn new(s: S, big: S::F, small: S::F, rest: S::F) -> Self {
        let sum = s.add(big, small);
        let lost = s.sub(small, s.sub(sum, big));
        Self([sum, s.add(lost, rest)])
    }

    #[inline(always)]
    fn select(s: S, mask: S::M, yes: Self, no: Self) -> Self {
        let [a, b] = [yes.0, no.0];
        Self([s.select(mask, a[0], b[0]), s.select(mask, a[1], b[1])])
    }

    #[inline(always)]
    fn one(s: S) -> Self {
        Self([s.splat(1.0), s.splat(0.0)])
    }

    #[inline(always)]
    fn times(self, s: S, by: Self) -> Self {
        let ([a, a_low], [b, b_low]) = (self.0, by.0);
        let product = s.mul(a, b);
        let lost = s.fma(a, b, s.neg(product));
        Self([product, s.fma(a, b_low, s.fma(a_low, b, lost))])
    }

    /// The quotient, as one number.
    #[inline(always)]
    fn over(self, s: S, by: Self) -> S::F {
        let ([a, a_low], [b, b_low]) = (self.0, by.0);
        let quotient = s.div(a, b);
        let lost = s.fma(s.neg(quotient), b, a);
        let lost = s.add(lost, s.fma(s.neg(quotient), b_low, a_low));
        s.add(quotient, s.div(lost, b))
    }
}

/// exp(-z) as power · (1 + sum + rest): a power of two, and what is left as a pair, whose error is a third of
/// f32's last place beside 1.
struct Parts<S: Simd> {
    power: S::F,
    sum: S::F,
    rest: S::F,
}

impl<S: Simd> Parts<S> {
    /// Of z = a + low, a from 0 to [`DEEPEST_PARTS`].
    #[inline(always)]
    fn new(s: S, a: S::F, low: S::F) -> Self {
        let (n, power) = whole(s, a);
        let high = s.neg(s.fma(n, s.splat(LN_2_HIGH), a));
        let low = s.sub(s.mul(n, s.splat(-LN_2_LOW)), low);
        // Either may be the larger one.
        let f = s.add(high, low);
        let of_low = s.sub(f, high);
        let lost = s.add(s.sub(high, s.sub(f, of_low)), s.sub(low, of_low));
        let tail = s.fma(s.mul(f, f), polynomial(s, f, &EXP_TAIL), lost);
        let Pair([sum, rest]) = Pair::<S>::new(s, f, tail, s.splat(0.0));
        Self { power, sum, rest }
    }

    /// 1 + exp(-z).
    #[inline(always)]
    fn plus(&self, s: S) -> Pair<S> {
        self.and_one(s, self.power)
    }

    /// 1 - exp(-z), to the last place also where that is small.
    #[inline(always)]
    fn minus(&self, s: S) -> Pair<S> {
        self.and_one(s, s.neg(self.power))
    }

    #[inline(always)]
    fn and_one(&self, s: S, power: S::F) -> Pair<S> {
        let one = s.splat(1.0);
        let whole = s.add(one, power);
        let lost = s.sub(power, s.sub(whole, one));
        let rest = s.fma(power, self.rest, lost);
        Pair::new(s, whole, s.mul(power, self.sum), rest)
    }

    /// exp(-z) over its power.
    #[inline(always)]
    fn mantissa(&self, s: S) -> Pair<S> {
        Pair::new(s, s.splat(1.0), self.sum, self.rest)
    }
}

/// exp(-z) of more is nothing beside 1, and its power is a normal number.
const DEEPEST_PARTS: f32 = 80.0;

/// Quotients x/bound below which tanh is its argument, to a tenth of f32's last place.
const LINEAR_PART: f32 = 1.0 / 8192.0;

/// bound · tanh(|x|/bound) as a fraction, of bounds from 2^-80 to 2^100.
#[inline(always)]
fn bounded_parts<S: Simd>(s: S, x: S::F, bound: f32) -> [Pair<S>; 2] {
    let (x, by) = (s.abs(x), s.splat(bound));
    let share = s.div(x, by);
    let low = s.mul(s.fma(s.neg(share), by, x), s.splat(1.0 / bound));
    // Twice both; what is clamped has no low part that counts.
    let most = s.splat(DEEPEST_PARTS);
    let twice = s.clamp_above(s.add(share, share), most);
    let e = Parts::new(
        s,
        twice,
        s.select(s.lt(twice, most), s.add(low, low), s.splat(0.0)),
    );
    let linear = s.lt(share, s.splat(LINEAR_PART));
    let over = e.minus(s).times(s, Pair([by, s.splat(0.0)]));
    let over = Pair::select(s, linear, Pair([x, s.splat(0.0)]), over);
    [over, Pair::select(s, linear, Pair::one(s), e.plus(s))]
}

/// bound · tanh(x/bound) for f32, of bounds as [`situ`]'s.
#[inline(always)]
pub(crate) fn bounded<S: Simd>(s: S, x: S::F, bound: f32) -> S::F {
    let [over, under] = bounded_parts(s, x, bound);
    with_sign(s, over.over(s, under), x)
}

/// beta · tanh(x/beta) · sigmoid(x) for f32, x above -79 and beta from 2^-80 to 2^100. Results near the
/// subnormal numbers are not right.
#[inline(always)]
pub(crate) fn situ<S: Simd>(s: S, x: S::F, beta: f32) -> S::F {
    let [over, under] = bounded_parts(s, x, beta);
    let depth = s.clamp_above(s.abs(x), s.splat(DEEPEST_PARTS));
    let e = Parts::new(s, depth, s.splat(0.0));
    // sigmoid(x) is exp(-|x|) / (1 + exp(-|x|)) where x is negative.
    let negative = s.lt(x, s.splat(0.0));
    let part = Pair::select(s, negative, e.mantissa(s), Pair::one(s));
    let power = s.select(negative, e.power, s.splat(1.0));
    let y = over.times(s, part).over(s, under.times(s, e.plus(s)));
    with_sign(s, s.mul(y, power), x)
}

/// A magnitude with the sign of another number.
#[inline(always)]
fn with_sign<S: Simd>(s: S, magnitude: S::F, of: S::F) -> S::F {
    let sign = s.and(s.bits(of), s.splat_u32(1 << 31));
    s.float(s.or(s.bits(magnitude), sign))
}
