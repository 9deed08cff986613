// Arithmetic that the drivers' own does not do well enough.
//
// WGSL promises 2.5 ulp for a division, 62 ulp were measured for exp, and nothing is promised for
// infinities and NaN. What must hold here is built from additions and multiplications, integer
// operations on the bits, and nothing that an optimiser may undo: splitting goes through integers,
// and no expression has the form (a + b) - a.

const LOG2_E: f32 = 1.44269504;
// ln 2 in two parts: the first has 12 bits, so that its product with a small integer is exact.
const LN2_HIGH: f32 = 0.693115234375;
const LN2_LOW: f32 = 3.1946183e-5;
// Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
const ROUNDER: f32 = 12582912.0;
const ROUNDER_BITS: i32 = 0x4b400000;

// value * 2^exponent, for results that f32 cannot hold on the way.
struct Scaled {
    value: f32,
    exponent: i32,
}

fn magnitude(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

fn is_nan(x: f32) -> bool {
    return magnitude(x) > 0x7f800000u;
}

fn is_negative(x: f32) -> bool {
    return bitcast<u32>(x) >= 0x80000000u;
}

fn infinity() -> f32 {
    var bits = 0x7f800000u;
    return bitcast<f32>(bits);
}

fn nan() -> f32 {
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}

fn zero_like(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) & 0x80000000u);
}

// x > bound for a bound above 0; false for NaN.
fn exceeds(x: f32, bound: f32) -> bool {
    let bits = bitcast<u32>(x);
    return bits > bitcast<u32>(bound) && bits <= 0x7f800000u;
}

fn clamp_above(x: f32, limit: f32) -> f32 {
    return select(x, limit, exceeds(x, limit));
}

fn clamp_both(x: f32, limit: f32) -> f32 {
    let sign = bitcast<u32>(x) & 0x80000000u;
    let beyond = exceeds(abs(x), limit);
    return select(x, bitcast<f32>(bitcast<u32>(limit) | sign), beyond);
}

// The upper 12 bits of the significand.
fn upper(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u);
}

// x, rounded before what is done with it: a compiler may make one operation of a product and a sum,
// unless it cannot know that these bits stay as they are. Functions are numbered from 0.
fn kept(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) | (call.op.function >> 31u));
}

// a * b as a sum of two.
fn exact_product(a: f32, b: f32) -> vec2<f32> {
    let p = kept(a * b);
    let ah = upper(a);
    let bh = upper(b);
    let al = a - ah;
    let bl = b - bh;
    return vec2(p, ((ah * bh - p) + ah * bl + al * bh) + al * bl);
}

fn divide(a: f32, b: f32) -> f32 {
    let q = kept(a / b);
    let exponent = magnitude(q) >> 23u;
    // Where the correction would leave the range of f32, and for infinity.
    if exponent < 30u || exponent > 200u {
        return q;
    }
    let qb = exact_product(q, b);
    return q + ((a - qb.x) - qb.y) / b;
}

// 2^n, n from -126 to 127.
fn power_of_two(n: i32) -> f32 {
    return bitcast<f32>(u32(n + 127) << 23u);
}

fn scale(value: f32, exponent: i32) -> f32 {
    let n = clamp(exponent, -252, 254);
    let half = n / 2;
    return value * power_of_two(half) * power_of_two(n - half);
}

// exp(high + low) for |high| below 1100 and a small low.
fn exp_scaled(high: f32, low: f32) -> Scaled {
    let n = bitcast<i32>(high * LOG2_E + ROUNDER) - ROUNDER_BITS;
    let nf = f32(n);
    let r = ((high - nf * LN2_HIGH) - nf * LN2_LOW) + low;
    return Scaled(exp_near_zero(r), n);
}

// exp(r) for |r| up to ln(2)/2.
fn exp_near_zero(r: f32) -> f32 {
    var q = fma(r, 0.00138146, 0.008368716);
    q = fma(r, q, 0.04166839);
    q = fma(r, q, 0.16666521);
    q = fma(r, q, 0.49999994);
    return 1.0 + fma(r * r, q, r);
}

fn product(a: Scaled, b: Scaled) -> Scaled {
    return Scaled(a.value * b.value, a.exponent + b.exponent);
}

// x, a subnormal number as an integer: drivers may take it for 0.
fn unpacked(x: f32) -> Scaled {
    let m = magnitude(x);
    if m >= 0x00800000u {
        return Scaled(x, 0);
    }
    let sign = bitcast<u32>(x) & 0x80000000u;
    return Scaled(bitcast<f32>(bitcast<u32>(f32(m)) | sign), -149);
}

fn is_zero_or_infinite(x: f32) -> bool {
    let exponent = magnitude(x) >> 23u;
    return exponent == 0u || exponent == 255u;
}

// The product in [1, 4) and its exponent: nothing is lost to the range of f32.
fn product_scaled(x: Scaled, y: Scaled) -> Scaled {
    if is_zero_or_infinite(x.value) || is_zero_or_infinite(y.value) {
        return Scaled(x.value * y.value, 0);
    }
    let ex = i32(magnitude(x.value) >> 23u) + x.exponent;
    let ey = i32(magnitude(y.value) >> 23u) + y.exponent;
    let a = bitcast<f32>((bitcast<u32>(x.value) & 0x807fffffu) | 0x3f800000u);
    let b = bitcast<f32>((bitcast<u32>(y.value) & 0x807fffffu) | 0x3f800000u);
    return Scaled(a * b, ex + ey - 254);
}

// The next number from f: away from 0 where x is positive, towards it where it is negative.
//
// For a small x the functions here are x/2 + c * x^2 with a positive c. f32 cannot hold the second
// term, and without it products would seem to lie on ties where they lie beside them. Of x below
// 2^-53 f64 cannot hold it either, and the reference sees the tie.
fn nudged(f: vec4<f32>, x: vec4<f32>) -> vec4<f32> {
    let up = bitcast<vec4<u32>>(x) < vec4(0x80000000u);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(f) + select(vec4(0xffffffffu), vec4(1u), up));
}

fn needs_nudge(x: vec4<f32>) -> vec4<bool> {
    let m = bitcast<vec4<u32>>(x) & vec4(0x7fffffffu);
    return (m - vec4(0x25000000u)) <= vec4(SMALL - 0x25000000u);
}

// 2^-22: up to it the functions are x/2 to a few ulp.
const SMALL: u32 = 0x34800000u;

// x <= y, for numbers that may be subnormal.
fn at_most(x: f32, y: f32) -> bool {
    return ordered(x) <= ordered(y);
}

fn ordered(x: f32) -> i32 {
    let m = i32(magnitude(x));
    return select(m, -m, is_negative(x));
}

// Beyond this exp is 0, and was already in f64.
const EXP_END: f32 = 746.0;

// x * sigmoid(z), given e = exp(-|z|): no overflow anywhere.
fn times_sigmoid(x: f32, negative: bool, e: Scaled) -> Scaled {
    var d = 1.0;
    if e.exponent > -100 {
        d = 1.0 + scale(e.value, e.exponent);
    }
    let q = divide(x, d);
    if negative {
        return Scaled(q * e.value, e.exponent);
    }
    return Scaled(q, 0);
}

// x * sigmoid(z) where z is so far below 0 that the sigmoid is 0.
fn times_nothing(x: f32) -> Scaled {
    if magnitude(x) == 0x7f800000u {
        return Scaled(nan(), 0);
    }
    return Scaled(zero_like(x), 0);
}

fn silu(alpha: f32, x: f32) -> Scaled {
    let z = exact_product(alpha, abs(x));
    let negative = is_negative(x);
    if !(z.x < EXP_END) {
        if negative {
            return times_nothing(x);
        }
        return Scaled(x, 0);
    }
    return times_sigmoid(x, negative, exp_scaled(-z.x, -z.y));
}

// 2 * sqrt(2/pi), and that times 0.044715: each with what f32 leaves of it.
const TANH_LINEAR: f32 = 1.59576917;
const TANH_LINEAR_REST: f32 = -4.534068e-8;
const TANH_CUBIC: f32 = 0.071354814;
const TANH_CUBIC_REST: f32 = 2.3988324e-9;

// x * sigmoid(linear * x + cubic * x^3): the exponential of each term apart, as their sum would be
// too coarse.
fn gelu_tanh(x: f32) -> Scaled {
    let a = abs(x);
    let negative = is_negative(x);
    if !(a < 21.51663) {
        if negative {
            return times_nothing(x);
        }
        return Scaled(x, 0);
    }
    let square = exact_product(a, a);
    let factor = exact_product(a, TANH_CUBIC);
    var cubic = exact_product(square.x, factor.x);
    cubic.y += square.x * (factor.y + a * TANH_CUBIC_REST) + square.y * factor.x;
    var linear = exact_product(a, TANH_LINEAR);
    linear.y += a * TANH_LINEAR_REST;
    let e = product(exp_scaled(-linear.x, -linear.y), exp_scaled(-cubic.x, -cubic.y));
    return times_sigmoid(x, negative, e);
}

// x * (1 + erf(x / sqrt(2))) / 2. With a = |x|, half of erfc(a / sqrt(2)) is exp(-a^2/2) times a
// function that falls like 1/a; (1 + 2a) times that is a polynomial in (a - 4) / (a + 4).
fn gelu(x: f32) -> Scaled {
    let a = abs(x);
    let negative = is_negative(x);
    if !(a < 38.7) {
        if negative {
            return times_nothing(x);
        }
        return Scaled(x, 0);
    }
    let s = divide(a - 4.0, a + 4.0);
    var p = fma(s, -0.00015653887, -8.328889e-5);
    p = fma(s, p, 0.0015460958);
    p = fma(s, p, -0.0012494425);
    p = fma(s, p, -0.010502714);
    p = fma(s, p, 0.04437605);
    p = fma(s, p, -0.0952619);
    p = fma(s, p, 0.12890668);
    p = fma(s, p, -0.0963799);
    p = fma(s, p, -0.023009183);
    p = fma(s, p, 0.84969574);
    let tail = divide(p, 1.0 + 2.0 * a);
    let square = exact_product(a, a);
    let e = exp_scaled(-0.5 * square.x, -0.5 * square.y);
    if negative {
        return Scaled(x * (tail * e.value), e.exponent);
    }
    return Scaled(x * (1.0 - scale(tail * e.value, e.exponent)), 0);
}

fn tanh_accurate(x: f32) -> f32 {
    let a = abs(x);
    if a < 0.6 {
        let z = x * x;
        var p = fma(z, -0.0059058606, 0.020805378);
        p = fma(z, p, -0.05378668);
        p = fma(z, p, 0.13331959);
        p = fma(z, p, -0.333333);
        return fma(x * z, p, x);
    }
    var t = 1.0;
    if a < 20.0 {
        let e = exp_scaled(-2.0 * a, 0.0);
        let value = scale(e.value, e.exponent);
        t = divide(1.0 - value, 1.0 + value);
    }
    return bitcast<f32>(bitcast<u32>(t) | (bitcast<u32>(x) & 0x80000000u));
}

fn bounded(x: f32, bound: f32) -> f32 {
    return bound * tanh_accurate(divide(x, bound));
}

fn situ(beta: f32, x: f32) -> Scaled {
    let f = bounded(x, beta);
    let negative = is_negative(x);
    if !(abs(x) < EXP_END) {
        if negative {
            return Scaled(zero_like(f), 0);
        }
        return Scaled(f, 0);
    }
    return times_sigmoid(f, negative, exp_scaled(-abs(x), 0.0));
}
