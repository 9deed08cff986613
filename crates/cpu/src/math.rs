//! The functions of the activations on vectors, from exactly rounded operations only.

use swiglu_core::DType;

use crate::activation::Lanes;
use crate::simd::{Rare, Simd};

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

/// 2^t on ±1/2 as (even + t · odd) / (even - t · odd) with even = t² + [`EVEN`] and odd = [`ODD`], within
/// 9.2e-7: a four-thousandth of bf16's last place.
const EVEN: f32 = 25.019_884;
const ODD: f32 = 8.671_231;

/// The same with even = a · t² + b and odd = t² + c, within 1.6e-8.
const EVEN_3: [f32; 2] = [17.312_458, 360.336_12];
const ODD_3: f32 = 124.882_99;

/// 2^t on ±1/2 by a polynomial, minimax among those with coefficients of f32, within 8e-9: for f32,
/// which sees that a fraction is rounded twice more.
const EXP_2: [f32; 7] = [
    1.512_665_2e-4,
    1.336_378_6e-3,
    9.619_077e-3,
    5.550_448_2e-2,
    0.240_226_45,
    std::f32::consts::LN_2.next_down(),
    1.0,
];

/// What log2(e) lost in rounding to f32.
const LOG2_E_LOW: f32 = 1.925_963e-8;

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
    s.select(usual, y, s.apart(Anywhere::<S> { x, alpha }))
}

/// The same where |alpha · x| is below [`USUAL`].
#[inline(always)]
pub(crate) fn silu_of_usual<S: Simd, T: Lanes>(s: S, x: S::F, alpha: f32) -> S::F {
    let z = match alpha {
        1.0 => x,
        _ => s.mul(s.splat(alpha), x),
    };
    let (n, t) = split(s, z);
    let n = s.shl::<23>(n);
    if T::DTYPE == DType::F32 {
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
    let (even, odd) = if T::DTYPE == DType::BF16 {
        (s.fma(t, t, s.splat(EVEN)), s.splat(ODD))
    } else {
        long(s, t)
    };
    let (over, under) = (s.fma(t, odd, even), s.fma(s.neg(t), odd, even));
    let over = s.float(s.add_u32(s.bits(over), n));
    s.mul(x, s.div(under, s.add(under, over)))
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

/// The long fraction's even and odd.
#[inline(always)]
fn long<S: Simd>(s: S, t: S::F) -> (S::F, S::F) {
    let square = s.mul(t, t);
    let [a, b] = [s.splat(EVEN_3[0]), s.splat(EVEN_3[1])];
    (s.fma(square, a, b), s.add(square, s.splat(ODD_3)))
}

/// -z · log2(e) = n + t: n in the lowest bits, and t.
#[inline(always)]
fn split<S: Simd>(s: S, z: S::F) -> (S::I, S::F) {
    let shifted = s.fma(z, s.splat(-std::f32::consts::LOG2_E), s.splat(MAGIC));
    let minus_n = s.sub(s.splat(MAGIC), shifted);
    let t = s.fma(z, s.splat(-std::f32::consts::LOG2_E), minus_n);
    (s.bits(shifted), t)
}

/// exp(-z) as a fraction, |z| at most [`USUAL`]; for results of 16 bits, as all below that is not said
/// to be for f32.
#[inline(always)]
fn exp_of_minus<S: Simd>(s: S, z: S::F) -> [S::F; 2] {
    let (n, t) = split(s, z);
    let (even, odd) = long(s, t);
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
    let (n, t) = split(s, twice);
    let (even, odd) = long(s, t);
    let odd = s.mul(t, odd);
    // With exp(-2|x|) = p · (even + odd) / (even - odd), where 1 - exp(-2|x|) does not cancel.
    let p = s.float(s.add_u32(s.shl::<23>(n), s.splat_u32(1.0_f32.to_bits())));
    let (less, more) = (s.sub(s.splat(1.0), p), s.add(s.splat(1.0), p));
    let over = s.fma(less, even, s.neg(s.mul(more, odd)));
    let under = s.fma(more, even, s.neg(s.mul(less, odd)));
    let sign = s.and(s.bits(x), s.splat_u32(1 << 31));
    s.float(s.or(s.bits(s.div(over, under)), sign))
}

/// x · sigmoid(2 √(2/π) (x + 0.044715 x³)), x above -9.6.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let cubic = s.fma(s.mul(x, x), s.splat(0.071_354_814), s.splat(1.595_769_2));
    s.mul(x, sigmoid(s, s.mul(x, cubic)))
}

/// exp(a²/2) times the part of the normal distribution beyond a, from q = (a - 3) / (a + 3): within
/// 2.7e-8 for a from 0 to 12.7.
const BEYOND: [f32; 10] = [
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

/// Where [`BEYOND`] ends.
const FARTHEST: f32 = 12.625;

/// x/2 · (1 + erf(x/√2)), x above -12.6.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::F) -> S::F {
    let a = s.clamp_above(s.abs(x), s.splat(FARTHEST));
    let [over, under] = exp_of_minus(s, s.mul(s.mul(a, s.splat(0.5)), a));
    let three = s.splat(3.0);
    let q = s.div(s.sub(a, three), s.add(a, three));
    let p = polynomial(s, q, &BEYOND);
    let beyond = s.div(s.mul(p, over), under);
    let below = s.sub(s.splat(1.0), beyond);
    s.mul(x, s.select(s.lt(x, s.splat(0.0)), beyond, below))
}

/// erf(x/√2) / 2x from x², |x| at most 1.
const NEAR: [f32; 6] = [
    -7.628_864_8e-6,
    1.134_301_9e-4,
    -1.186_287_3e-3,
    9.973_311e-3,
    -6.649_036e-2,
    0.398_942_3,
];

/// [`BEYOND`] for f32, within 7.6e-9 for a from 1 to 5: all but the last of its terms, and that.
const BEYOND_5: [f32; 7] = [
    -3.946_969_5e-4,
    -9.715_979e-4,
    2.916_546e-3,
    6.132_371e-3,
    -4.621_412_2e-2,
    1.232_249_8e-1,
    -2.064_026e-1,
];

const LAST_BEYOND_5: f32 = 1.215_139_5e-1;

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
    let slope = polynomial(s, q, &BEYOND_5);
    let last = s.fma(slope, q_low, s.splat(LAST_BEYOND_5));
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

/// x · sigmoid(alpha · x), whatever x and alpha.
struct Anywhere<S: Simd> {
    x: S::F,
    alpha: f32,
}

impl<S: Simd> Rare<S> for Anywhere<S> {
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
