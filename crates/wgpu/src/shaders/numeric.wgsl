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

// x with its value from 1 to 2, unless it is 0, infinite or NaN.
fn normalized(x: f32) -> Scaled {
    let u = unpacked(x);
    if is_zero_or_infinite(u.value) {
        return u;
    }
    let exponent = i32(magnitude(u.value) >> 23u) - 127;
    let value = bitcast<f32>((bitcast<u32>(u.value) & 0x807fffffu) | 0x3f800000u);
    return Scaled(value, u.exponent + exponent);
}

// 2^64 * x, of an x below 2^-63.
fn lifted(x: f32) -> f32 {
    let u = unpacked(x);
    return u.value * power_of_two(u.exponent + 64);
}

// x + y, where operands may be subnormal and the sum beyond f32. Some compilers take a factor out of
// both products, unless they are kept.
fn sum_scaled(x: f32, y: f32) -> Scaled {
    let largest = max(magnitude(x), magnitude(y));
    if largest >= 0x7e800000u {
        return Scaled(kept(0.25 * x) + kept(0.25 * y), 2);
    }
    // 2^-63.
    if largest < 0x20000000u {
        return Scaled(kept(lifted(x)) + kept(lifted(y)), -64);
    }
    return Scaled(x + y, 0);
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

// x <= y, for numbers that may be subnormal.
fn at_most(x: f32, y: f32) -> bool {
    return ordered(x) <= ordered(y);
}

fn ordered(x: f32) -> i32 {
    let m = i32(magnitude(x));
    return select(m, -m, is_negative(x));
}
