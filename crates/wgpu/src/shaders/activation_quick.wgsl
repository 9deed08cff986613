// The operation on vectors of 16 bytes.
//
// ## Method
// 1. The quick path is for silu, and takes a vector that holds no NaN, no infinite up and no gate so
//    large that its exponential leaves f32: additions to the magnitudes, two to a word, tell.
// 2. It computes four elements at a time, with an exp of our own and without branches.
// 3. If a result is subnormal or 0, or the quick path does not take the vector, the elements go one by
//    one through gated().

// Quick widening takes f16 that are normal only, which every driver unpacks exactly.
fn widen_low(pairs: vec4<u32>) -> vec4<f32> {
    if FLOAT == 1u {
        return vec4(
            unpack2x16float(pairs.x).x,
            unpack2x16float(pairs.y).x,
            unpack2x16float(pairs.z).x,
            unpack2x16float(pairs.w).x,
        );
    }
    return bitcast<vec4<f32>>(pairs << vec4(16u));
}

fn widen_high(pairs: vec4<u32>) -> vec4<f32> {
    if FLOAT == 1u {
        return vec4(
            unpack2x16float(pairs.x).y,
            unpack2x16float(pairs.y).y,
            unpack2x16float(pairs.z).y,
            unpack2x16float(pairs.w).y,
        );
    }
    return bitcast<vec4<f32>>(pairs & vec4(0xffff0000u));
}

// As narrow_f16, without branches.
fn narrow_quick_f16(x: vec4<f32>) -> vec4<u32> {
    let m = bitcast<vec4<u32>>(x) & vec4(0x7fffffffu);
    let small = bitcast<vec4<u32>>(bitcast<vec4<f32>>(m) + vec4(0.5)) - vec4(0x3f000000u);
    let odd = (m >> vec4(13u)) & vec4(1u);
    let normal = min((m - vec4(112u << 23u) + vec4(0xfffu) + odd) >> vec4(13u), vec4(0x7c00u));
    let sign = (bitcast<vec4<u32>>(x) >> vec4(16u)) & vec4(0x8000u);
    let bits = sign | select(normal, small, m < vec4(0x38800000u));
    return select(bits, vec4(0x7e00u), m > vec4(0x7f800000u));
}

fn narrow_quick(x: vec4<f32>) -> vec4<u32> {
    if FLOAT == 1u {
        return narrow_quick_f16(x);
    }
    let bits = bitcast<vec4<u32>>(x);
    let r = (bits + vec4(0x7fffu) + ((bits >> vec4(16u)) & vec4(1u))) >> vec4(16u);
    // 0 * inf and inf - inf are NaN without one among the inputs.
    let bad = (bits & vec4(0x7fffffffu)) > vec4(0x7f800000u);
    return select(r, vec4(0x7fc0u), bad);
}

fn rounded_quick(x: vec4<f32>) -> vec4<f32> {
    if FLOAT == 0u || call.op.eager == 0u {
        return x;
    }
    let bits = narrow_quick(x);
    if FLOAT == 1u {
        return vec4(
            widen_f16(bits.x),
            widen_f16(bits.y),
            widen_f16(bits.z),
            widen_f16(bits.w),
        );
    }
    return bitcast<vec4<f32>>(bits << vec4(16u));
}

// silu without NaN, for gates whose exponential is a normal number.
fn silu_quick(x: vec4<f32>) -> vec4<f32> {
    let a = -abs(x);
    let n = bitcast<vec4<u32>>(a * (call.op.first * LOG2_E) + vec4(ROUNDER));
    // The function's number is 0 here, which the optimiser cannot know: it must not undo the
    // rounding. Conversions from integers are slower.
    let nf = bitcast<vec4<f32>>(n | vec4(call.op.function)) - vec4(ROUNDER);
    let alpha_high = upper(call.op.first);
    let alpha_low = call.op.first - alpha_high;
    let r = (fma(a, vec4(alpha_high), -nf * LN2_HIGH) - nf * LN2_LOW) + a * alpha_low;
    var q = fma(r, vec4(0.00138146), vec4(0.008368716));
    q = fma(r, q, vec4(0.04166839));
    q = fma(r, q, vec4(0.16666521));
    q = fma(r, q, vec4(0.49999994));
    let p = 1.0 + fma(r * r, q, r);
    let e = bitcast<vec4<f32>>(bitcast<vec4<u32>>(p) + (n << vec4(23u)));
    return select(x * e, x, x >= vec4(0.0)) * (1.0 / (1.0 + e));
}

fn gated_quick(gate: vec4<f32>, up: vec4<f32>) -> vec4<u32> {
    var g = gate;
    var u = up;
    if call.op.clamp_place == 1u {
        g = rounded_quick(select(g, vec4(call.op.limit), g > vec4(call.op.limit)));
    }
    if call.op.clamp_place != 0u {
        u = select(u, vec4(call.op.limit), u > vec4(call.op.limit));
        u = select(u, vec4(-call.op.limit), u < vec4(-call.op.limit));
    }
    var f = rounded_quick(silu_quick(g));
    if call.op.clamp_place == 2u {
        f = rounded_quick(select(f, vec4(call.op.limit), f > vec4(call.op.limit)));
    }
    if call.op.up_add != 0.0 {
        u += call.op.up_add;
    }
    let y = f * rounded_quick(u);
    if FLOAT == 0u {
        let bits = bitcast<vec4<u32>>(y);
        return select(bits, vec4(0x7fc00000u), (bits & vec4(0x7fffffffu)) > vec4(0x7f800000u));
    }
    return narrow_quick(y);
}

// The bits above the magnitudes of an element, or of a pair.
fn above() -> u32 {
    return select(0x80008000u, 0x80000000u, FLOAT == 0u);
}

// Whether the quick path takes the vector. Adding to a magnitude sets the bit above it where the
// magnitude reaches a bound.
fn takes(gate: vec4<u32>, up: vec4<u32>) -> bool {
    if call.op.gate_guard == 0u {
        return false;
    }
    let g = gate & vec4(~above());
    let u = up & vec4(~above());
    // Gates that are large, infinite or NaN; ups that are infinite or NaN.
    let infinite = select(select(0x00800080u, 0x04000400u, FLOAT == 1u), 0x00800000u, FLOAT == 0u);
    let large = (g + vec4(call.op.gate_guard)) | (u + vec4(infinite));
    let none_large = ((large.x | large.y | large.z | large.w) & above()) == 0u;
    // Gates that need a nudge, which no f32 does; f16 and gates in f32 that are subnormal or 0.
    var not_small = g + vec4(0x4b7f4b7fu);
    if FLOAT == 0u {
        not_small = g + vec4(0x7f800000u);
    } else if FLOAT == 1u {
        not_small = (g + vec4(0x7c007c00u)) & (u + vec4(0x7c007c00u));
    }
    let all = not_small.x & not_small.y & not_small.z & not_small.w;
    return none_large && (all & above()) == above();
}

// Whether a result is 0 or subnormal: it may have been flushed, or come from what was. The f16
// results that are subnormal come from normal f32.
fn has_tiny(y: vec4<u32>) -> bool {
    if FLOAT == 1u {
        return false;
    }
    let bound = select(0x7f807f80u, 0x7f800000u, FLOAT == 0u);
    let normal = (y & vec4(~above())) + vec4(bound);
    return (normal.x & normal.y & normal.z & normal.w & above()) != above();
}

fn gated_pair(gate: u32, up: u32) -> u32 {
    let low = gated(gate & 0xffffu, up & 0xffffu);
    return low | (gated(gate >> 16u, up >> 16u) << 16u);
}

fn gated_one_by_one(gate: vec4<u32>, up: vec4<u32>) -> vec4<u32> {
    var y = vec4(0u);
    for (var i = 0u; i < 4u; i++) {
        if FLOAT == 0u {
            y[i] = gated(gate[i], up[i]);
        } else {
            y[i] = gated_pair(gate[i], up[i]);
        }
    }
    return y;
}

// What a fast path makes of a vector, and whether that holds for each of its elements.
struct Attempt {
    y: vec4<u32>,
    sound: bool,
}

fn quick_vector(gate: vec4<u32>, up: vec4<u32>) -> Attempt {
    if !takes(gate, up) {
        return Attempt(vec4(0u), false);
    }
    var y: vec4<u32>;
    if FLOAT == 0u {
        y = gated_quick(bitcast<vec4<f32>>(gate), bitcast<vec4<f32>>(up));
    } else {
        let low = gated_quick(widen_low(gate), widen_low(up));
        let high = gated_quick(widen_high(gate), widen_high(up));
        y = low | (high << vec4(16u));
    }
    return Attempt(y, !has_tiny(y));
}

// One vector of the output.
fn gated_vector(gate: vec4<u32>, up: vec4<u32>) -> vec4<u32> {
    let quick = quick_vector(gate, up);
    if quick.sound {
        return quick.y;
    }
    return gated_one_by_one(gate, up);
}
