// What matmuls read: x, the weight and its scales.

@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
// Numbers of f32, or bytes of E8M0.
@group(0) @binding(2) var<storage, read> scales: array<u32>;
// The type of the weight.
override WEIGHT: u32;

// Groups of four elements in a vector of the weight: 1, 2, 4 or 8.
override QUADS: u32;

// The type of x, or ANY where the call tells.
override X_FLOAT: u32;
const ANY: u32 = 255u;

fn x_float() -> u32 {
    if X_FLOAT == ANY {
        return call.x_float;
    }
    return X_FLOAT;
}

// Whether x is in whole vectors: no row of it ends or starts within one.
override ALIGNED: bool;

// Whether f16 is unpacked by the device, and codes decoded as f16: some drivers take to 0 what is
// subnormal.
override E4M3_AS_F16: bool;

fn widen_four(float: u32, pairs: vec2<u32>) -> vec4<f32> {
    if E4M3_AS_F16 && float == 1u {
        return vec4(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
    }
    return widen_pairs(float, pairs);
}

// The bits of an e4m3 are those of an f16 of a 256th of its value, but for NaN.
fn widen_e4m3_as_f16(codes: u32) -> vec4<f32> {
    if (((codes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u) != 0u {
        return widen_e4m3(codes);
    }
    let odd = codes >> 8u;
    let a = ((codes & 0x007f007fu) << 7u) | ((codes & 0x00800080u) << 8u);
    let b = ((odd & 0x007f007fu) << 7u) | ((odd & 0x00800080u) << 8u);
    let even = unpack2x16float(a);
    let uneven = unpack2x16float(b);
    return vec4(even.x, uneven.x, even.y, uneven.y) * 256.0;
}

// The eight codes of E2M1 in a word, times 2^-14. A code's bits are those of an f16 of that, and nearly those of
// an f32: a subnormal first gets an exponent one too large. Codes lie as `weight/codes.rs` has arranged them: the two
// of a pair in either half, so that few shifts bring them to where an f16 has them. A product brings a sign and a
// magnitude there by two shifts at once: devices have fewer units for shifts than for products.
fn widen_e2m1(codes: u32) -> mat2x4<f32> {
    if E4M3_AS_F16 {
        let a = unpack2x16float(codes & 0x8e008e00u);
        let b = unpack2x16float((codes << 3u) & 0x8e008e00u);
        let c = unpack2x16float(((codes & 0x40384038u) * 66u) & 0x8e008e00u);
        let d = unpack2x16float(((codes & 0x20072007u) * 516u) & 0x8e008e00u);
        return mat2x4(vec4(a.x, b.x, c.x, d.x), vec4(a.y, b.y, c.y, d.y));
    }
    return mat2x4(four_of_e2m1(codes), four_of_e2m1(codes >> 16u));
}

fn four_of_e2m1(codes: u32) -> vec4<f32> {
    let m = (vec4(codes) >> vec4(9u, 6u, 3u, 0u)) & vec4(7u);
    let small = m < vec4(2u);
    let wide = (m << vec4(22u)) + select(vec4(112u << 23u), vec4(113u << 23u), small);
    let value = bitcast<vec4<f32>>(wide) - select(vec4(0.0), vec4(0.00006103515625), small);
    let signs = (vec4(codes) << vec4(16u, 19u, 17u, 18u)) & vec4(0x80000000u);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(value) | signs);
}

// The scale of FP4 at a byte, times 2^14 and what `call.result_scale` undoes, as two factors: neither leaves the
// range of f32, and multiplied one after another they take no sum out of it that the scale does not. Ordinary scales
// are one factor, which gives the same.
fn e8m0_at(at: u32) -> vec2<f32> {
    let byte = (scales[at >> 2u] >> ((at & 3u) << 3u)) & 0xffu;
    let exponent = i32(byte) + 14 - i32(bitcast<u32>(call.result_scale) >> 23u);
    if byte - 32u < 192u {
        return vec2(power_of_two(exponent), 1.0);
    }
    let half = exponent / 2;
    return vec2(select(power_of_two(half), nan(), byte == 255u), power_of_two(exponent - half));
}

// Four weights of a vector, without their scale.
fn weight_quad(v: vec4<u32>, quad: u32) -> vec4<f32> {
    if WEIGHT == 0u {
        return bitcast<vec4<f32>>(v);
    }
    if WEIGHT == 3u {
        if E4M3_AS_F16 {
            return widen_e4m3_as_f16(v[quad]);
        }
        return widen_e4m3(v[quad]);
    }
    if WEIGHT == 4u {
        let eight = widen_e2m1(v[quad / 2u]);
        return select(eight[0], eight[1], quad % 2u == 1u);
    }
    return widen_four(WEIGHT, select(v.xy, v.zw, quad == 1u));
}

// The scale of the weights from column k on, as far as its block goes: two factors.
fn weight_scale(row: u32, k: u32) -> vec2<f32> {
    if WEIGHT == 3u {
        return vec2(bitcast<f32>(scales[scale_start(row) + k / call.block_cols]), 1.0);
    }
    if WEIGHT == 4u {
        return e8m0_at(scale_start(row) + k / 32u);
    }
    return vec2(1.0);
}

// Terms of a sum times the scale of their weights.
fn scaled(terms: vec4<f32>, factors: vec2<f32>) -> vec4<f32> {
    if WEIGHT == 3u {
        return terms * factors.x;
    }
    if WEIGHT == 4u {
        return (terms * factors.x) * factors.y;
    }
    return terms;
}

fn x_element(position: u32) -> f32 {
    if x_float() == 0u {
        return bitcast<f32>(x[position >> 2u][position & 3u]);
    }
    let pair = x[position >> 3u][(position >> 1u) & 3u];
    return widen_as(x_float(), (pair >> ((position & 1u) << 4u)) & 0xffffu);
}

// Four elements of x from k on, a multiple of four; zeros beyond the row, if rows are not aligned.
fn x_quad(token: u32, k: u32) -> vec4<f32> {
    let at = x_start(token) + k;
    if ALIGNED {
        if x_float() == 0u {
            return bitcast<vec4<f32>>(x[at >> 2u]);
        }
        let v = x[at >> 3u];
        return widen_four(x_float(), select(v.xy, v.zw, (at & 4u) != 0u));
    }
    var quad = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        if k + i < call.k {
            quad[i] = x_element(at + i);
        }
    }
    return quad;
}
