// The element types. 16-bit elements travel in pairs as u32 and are widened and rounded in
// integers: no feature of the device is needed, and the result is the same on every driver.

// Types are numbered: 0: f32, 1: f16, 2: bf16, 3: e4m3, 4: e2m1.

// A subnormal first gets an exponent one too large, and with it a leading 1 of 2^-14.
fn widen_f16(bits: u32) -> f32 {
    let m = bits & 0x7fffu;
    let small = m < 0x400u;
    var wide = (m << 13u) + select(112u << 23u, 113u << 23u, small);
    wide += select(0u, 112u << 23u, m >= 0x7c00u);
    let value = bitcast<f32>(wide) - select(0.0, 0.00006103515625, small);
    return bitcast<f32>(bitcast<u32>(value) | ((bits & 0x8000u) << 16u));
}

fn narrow_f16(x: f32) -> u32 {
    let m = bitcast<u32>(x) & 0x7fffffffu;
    if m > 0x7f800000u {
        return 0x7e00u;
    }
    let sign = (bitcast<u32>(x) >> 16u) & 0x8000u;
    if m < 0x38800000u {
        // Below the smallest normal: the unit of 0.5 is 2^-24, and the addition rounds.
        return sign | (bitcast<u32>(bitcast<f32>(m) + 0.5) - 0x3f000000u);
    }
    let rounded = (m - (112u << 23u) + 0xfffu + ((m >> 13u) & 1u)) >> 13u;
    return sign | min(rounded, 0x7c00u);
}

fn narrow_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0x7fc0u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn widen_as(float: u32, bits: u32) -> f32 {
    if float == 0u {
        return bitcast<f32>(bits);
    }
    if float == 1u {
        return widen_f16(bits);
    }
    return bitcast<f32>(bits << 16u);
}

// To nearest, ties to even; every NaN becomes the one canonical NaN.
fn narrow_as(float: u32, x: f32) -> u32 {
    if float == 0u {
        return select(bitcast<u32>(x), 0x7fc00000u, is_nan(x));
    }
    if float == 1u {
        return narrow_f16(x);
    }
    return narrow_bf16(x);
}

// The bits of value * 2^exponent. Below the smallest normal number they are made in integers.
fn narrow_scaled(float: u32, x: Scaled) -> u32 {
    if is_zero_or_infinite(x.value) {
        return narrow_as(float, x.value);
    }
    let exponent = i32(magnitude(x.value) >> 23u) + x.exponent;
    let bits = bitcast<u32>(x.value) & 0x807fffffu;
    if exponent >= 255 {
        return narrow_as(float, bitcast<f32>((bits & 0x80000000u) | 0x7f800000u));
    }
    if exponent >= 1 {
        return narrow_as(float, bitcast<f32>(bits | (u32(exponent) << 23u)));
    }
    // As a multiple of the smallest number; adding 2^23 rounds to an integer.
    let places = exponent + select(149, 133, float == 2u);
    var n = 0u;
    if float != 1u && places > 100 {
        let multiple = bitcast<f32>((bits & 0x7fffffu) | (u32(places) << 23u));
        n = bitcast<u32>(multiple + 8388608.0) - 0x4b000000u;
    }
    return n | ((bits & 0x80000000u) >> select(16u, 0u, float == 0u));
}

fn widen_pairs(float: u32, pairs: vec2<u32>) -> vec4<f32> {
    if float == 2u {
        let low = pairs << vec2(16u);
        let high = pairs & vec2(0xffff0000u);
        return bitcast<vec4<f32>>(vec4(low.x, high.x, low.y, high.y));
    }
    return vec4(
        widen_f16(pairs.x & 0xffffu),
        widen_f16(pairs.x >> 16u),
        widen_f16(pairs.y & 0xffffu),
        widen_f16(pairs.y >> 16u),
    );
}

// As f16: a subnormal first gets an exponent one too large.
fn widen_e4m3(codes: u32) -> vec4<f32> {
    let c = (vec4(codes) >> vec4(0u, 8u, 16u, 24u)) & vec4(0xffu);
    let m = c & vec4(0x7fu);
    let small = m < vec4(8u);
    let wide = (m << vec4(20u)) + select(vec4(120u << 23u), vec4(121u << 23u), small);
    let value = bitcast<vec4<f32>>(wide) - select(vec4(0.0), vec4(0.015625), small);
    let bits = select(bitcast<vec4<u32>>(value), vec4(0x7fc00000u), m == vec4(0x7fu));
    return bitcast<vec4<f32>>(bits | ((c & vec4(0x80u)) << vec4(24u)));
}
