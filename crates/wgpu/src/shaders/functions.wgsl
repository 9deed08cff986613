// The functions of the family, by the numbers of swiglu_core::Function::id(): this is all that a new
// one needs here.
//
// ## Method
// 1. of_gate() takes the gate through the function. Up to 2^-22 most functions are x/2 + c * x^2:
//    they take the path for small gates; silu's depends on its slope, SiTU's on its bound.
// 2. of_bounded_up() takes the clamped up half through what a function does to it, if anything.
// 3. Results are Scaled: a value and a power of two, so that nothing is lost to the range of f32. Where a
//    parameter or a gate may be of any size, its significand alone is computed with.

// So many functions are known, from 0 on; what has a higher number is refused before it comes here.
const FUNCTIONS: u32 = 6u;

// Whether the pipeline is for silu alone, which spares it the registers of the other functions.
override ONLY_SILU: bool;

fn of_gate(x: f32) -> Scaled {
    if ONLY_SILU {
        return silu(call.op.first, x);
    }
    switch call.op.function {
        case 0u: {
            return silu(call.op.first, x);
        }
        case 1u: {
            return gelu(x);
        }
        case 2u: {
            return gelu_tanh(x);
        }
        case 3u: {
            if at_most(x, call.op.first) {
                return Scaled(0.0, 0);
            }
            return unpacked(x);
        }
        case 4u, 5u, default: {
            return situ(call.op.first, x);
        }
    }
}

// What the function does to the up half, which has been clamped.
fn of_bounded_up(x: f32) -> Scaled {
    if !ONLY_SILU && call.op.function == 5u {
        return bounded(x, call.op.second);
    }
    return unpacked(x);
}

// x/2 + c * x^2 for an x so small that the second term is at most an ulp: see nudged().
fn half_of(x: f32) -> Scaled {
    let small = unpacked(x);
    let value = select(vec4(small.value), nudged(vec4(x), vec4(x)), needs_nudge(vec4(x)));
    return Scaled(value.x, small.exponent - 1);
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
const SMALL_Z: f32 = 2.384185791015625e-7;
// 2^-53.
const NUDGED_Z: f32 = 1.1102230246251565e-16;

// Beyond this exp is 0, and was already in f64.
const EXP_END: f32 = 745.1333;

// x * sigmoid(z), given e = exp(-|z|): no overflow anywhere, as x's value is of ordinary size.
fn times_sigmoid(x: Scaled, negative: bool, e: Scaled) -> Scaled {
    var d = 1.0;
    if e.exponent > -100 {
        d = 1.0 + scale(e.value, e.exponent);
    }
    let q = divide(x.value, d);
    if negative {
        return Scaled(q * e.value, x.exponent + e.exponent);
    }
    return Scaled(q, x.exponent);
}

// x * sigmoid(z) where z is so far below 0 that the sigmoid is 0.
fn times_nothing(x: f32) -> Scaled {
    if magnitude(x) == 0x7f800000u {
        return Scaled(nan(), 0);
    }
    return Scaled(zero_like(x), 0);
}

// x * sigmoid(z), where z is beyond EXP_END on either side of 0.
fn at_the_end(x: f32) -> Scaled {
    if is_negative(x) {
        return times_nothing(x);
    }
    return unpacked(x);
}

// z = alpha * |x| is of the significands' product, as alpha and x may have any size.
fn silu(alpha: f32, x: f32) -> Scaled {
    let a = normalized(alpha);
    let g = normalized(x);
    let places = a.exponent + g.exponent;
    if is_zero_or_infinite(g.value) || places >= 10 {
        if magnitude(x) == 0u {
            return Scaled(x, 0);
        }
        return at_the_end(x);
    }
    let p = exact_product(a.value, abs(g.value));
    if places < -60 {
        return Scaled(g.value, g.exponent - 1);
    }
    let z = p * power_of_two(places);
    if z.x <= SMALL_Z {
        let next = nudged(vec4(g.value), vec4(g.value));
        return Scaled(select(g.value, next.x, z.x >= NUDGED_Z), g.exponent - 1);
    }
    if !(z.x < EXP_END) {
        return at_the_end(x);
    }
    return times_sigmoid(g, is_negative(x), exp_scaled(-z.x, -z.y));
}

// 2 * sqrt(2/pi), and that times 0.044715: each with what f32 leaves of it.
const TANH_LINEAR: f32 = 1.59576917;
const TANH_LINEAR_REST: f32 = -4.534068e-8;
const TANH_CUBIC: f32 = 0.071354814;
const TANH_CUBIC_REST: f32 = 2.3988324e-9;

// x * sigmoid(linear * x + cubic * x^3): the exponential of each term apart, as their sum would be
// too coarse.
fn gelu_tanh(x: f32) -> Scaled {
    if magnitude(x) <= SMALL {
        return half_of(x);
    }
    let a = abs(x);
    if !(a < 21.51663) {
        return at_the_end(x);
    }
    let square = exact_product(a, a);
    let factor = exact_product(a, TANH_CUBIC);
    var cubic = exact_product(square.x, factor.x);
    cubic.y += square.x * (factor.y + a * TANH_CUBIC_REST) + square.y * factor.x;
    var linear = exact_product(a, TANH_LINEAR);
    linear.y += a * TANH_LINEAR_REST;
    let e = product(exp_scaled(-linear.x, -linear.y), exp_scaled(-cubic.x, -cubic.y));
    return times_sigmoid(Scaled(x, 0), is_negative(x), e);
}

// x * (1 + erf(x / sqrt(2))) / 2. With a = |x|, half of erfc(a / sqrt(2)) is exp(-a^2/2) times a
// function that falls like 1/a; (1 + 2a) times that is a polynomial in (a - 4) / (a + 4).
fn gelu(x: f32) -> Scaled {
    if magnitude(x) <= SMALL {
        return half_of(x);
    }
    let a = abs(x);
    if !(a < 38.7) {
        return at_the_end(x);
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
    if is_negative(x) {
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

// bound * tanh(x / bound), where the quotient of the two may leave the range of f32.
fn bounded(x: f32, bound: f32) -> Scaled {
    let a = normalized(x);
    let b = normalized(bound);
    let places = a.exponent - b.exponent;
    if magnitude(x) == 0x7f800000u || places > 5 {
        return Scaled(select(b.value, -b.value, is_negative(x)), b.exponent);
    }
    // Of a quotient below 2^-13 tanh is the quotient to less than half an ulp.
    if magnitude(x) == 0u || places < -14 {
        return a;
    }
    let quotient = divide(a.value, b.value) * power_of_two(places);
    return Scaled(b.value * tanh_accurate(quotient), b.exponent);
}

fn situ(beta: f32, x: f32) -> Scaled {
    // From a beta of 2^-9 on its tanh takes less from a small x than the sigmoid adds.
    if magnitude(x) <= SMALL && magnitude(beta) >= 0x3b000000u {
        return half_of(x);
    }
    let f = bounded(x, beta);
    let negative = is_negative(x);
    if !(abs(x) < EXP_END) {
        if negative {
            return Scaled(zero_like(x), 0);
        }
        return f;
    }
    return times_sigmoid(f, negative, exp_scaled(-abs(x), 0.0));
}
