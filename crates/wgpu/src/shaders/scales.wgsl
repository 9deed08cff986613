// Scales and codes of FP8, as swiglu_core::Quantization has them, on the bits.

// amax / 448, rounded right: the significand is divided, the exponent added.
fn scale_of(amax: u32) -> u32 {
    let a = max(amax, bitcast<u32>(call.quant.floor));
    if a >= 0x7f800000u {
        return select(a, 0x7fc00000u, a > 0x7f800000u);
    }
    let q = divide(bitcast<f32>((a & 0x7fffffu) | 0x3f800000u), 448.0);
    return bitcast<u32>(q) + (a & 0x7f800000u) - 0x3f800000u;
}

// The least power of two that is not below a positive number; 255 for none.
fn ceil_e8m0(bits: u32) -> u32 {
    if bits <= 0x00400000u {
        return 0u;
    }
    return min((bits >> 23u) + u32((bits & 0x7fffffu) != 0u), 255u);
}

// To nearest, ties to even, saturating.
fn narrow_e4m3(x: f32) -> u32 {
    let m = magnitude(x);
    if m > 0x7f800000u {
        return 0x7fu;
    }
    let sign = (bitcast<u32>(x) >> 24u) & 0x80u;
    if m >= 0x43e00000u {
        return sign | 0x7eu;
    }
    if m < 0x3c800000u {
        // A multiple of 2^-9: the addition rounds.
        return sign | (bitcast<u32>(bitcast<f32>(m) + 16384.0) & 0xfu);
    }
    return sign | (((m + 0x7ffffu + ((m >> 20u) & 1u)) >> 20u) - (120u << 3u));
}

// The code of y under a scale, given as its bits or its byte.
fn code_of(y: f32, stored: u32) -> u32 {
    if is_nan(y) {
        return 0x7fu;
    }
    let u = unpacked(y);
    if call.quant.format == 1u {
        if stored == 255u {
            return 0x7fu;
        }
        return narrow_e4m3(scale(u.value, u.exponent + 127 - i32(stored)));
    }
    if stored >= 0x7f800000u {
        // Finite numbers over infinity are 0, infinite ones no number.
        let lost = stored > 0x7f800000u || magnitude(y) == 0x7f800000u;
        return select((bitcast<u32>(y) >> 24u) & 0x80u, 0x7fu, lost);
    }
    let s = bitcast<f32>(stored);
    if is_zero_or_infinite(u.value) {
        return (bitcast<u32>(y) >> 24u) & 0x80u;
    }
    // Significands are divided: no quotient leaves the range in which divide() corrects.
    let a = bitcast<f32>((bitcast<u32>(u.value) & 0x807fffffu) | 0x3f800000u);
    let b = bitcast<f32>((stored & 0x7fffffu) | 0x3f800000u);
    let e = i32(magnitude(u.value) >> 23u) + u.exponent - i32(stored >> 23u);
    return narrow_e4m3(scale(divide(a, b), e));
}

// The place of a scale, counted in scales.
fn scale_position(row: u32, group: u32) -> u32 {
    let first = call.quant.scale_offset;
    if call.quant.order == 0u {
        return first + row * call.quant.scale_stride + group;
    }
    if call.quant.order == 1u {
        return first + group * call.quant.scale_stride + row;
    }
    return first + (group / 4u * call.quant.scale_stride + row) * 4u + group % 4u;
}

// The bits, in some type, of a code's value times a scale, given as its bits or its byte: rounded once.
fn decoded(float: u32, code: f32, stored: u32) -> u32 {
    if call.quant.format == 1u {
        if stored == 255u || is_nan(code) {
            return narrow_as(float, nan());
        }
        return narrow_scaled(float, Scaled(code, i32(stored) - 127));
    }
    let s = bitcast<f32>(stored);
    if is_nan(s) || is_nan(code) {
        return narrow_as(float, nan());
    }
    let scaled = unpacked(s);
    if is_zero_or_infinite(code) || is_zero_or_infinite(scaled.value) {
        return narrow_as(float, code * s);
    }
    // Significands are multiplied: neither product nor remainder leaves the range of f32.
    let a = bitcast<f32>((bitcast<u32>(code) & 0x807fffffu) | 0x3f800000u);
    let b = bitcast<f32>((bitcast<u32>(scaled.value) & 0x807fffffu) | 0x3f800000u);
    let exponent = i32(magnitude(code) >> 23u) + i32(magnitude(scaled.value) >> 23u);
    let p = exact_product(a, b);
    var bits = bitcast<u32>(p.x);
    // Rounding to odd leaves the second rounding, to 16 bits, as good as one.
    if float != 0u && p.y != 0.0 && (bits & 1u) == 0u {
        bits += select(0xffffffffu, 1u, is_negative(p.y) == is_negative(p.x));
    }
    return narrow_scaled(float, Scaled(bitcast<f32>(bits), exponent + scaled.exponent - 254));
}
