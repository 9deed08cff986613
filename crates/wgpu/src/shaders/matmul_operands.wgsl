// What matmuls read: x, the weight and its scales.

@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
// The type of the weight.
override WEIGHT: u32;

// Groups of four elements in a vector of the weight: 1, 2 or 4.
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

// Whether f16 is unpacked by the device, and e4m3 decoded as f16: some drivers take to 0 what is
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
    return widen_four(WEIGHT, select(v.xy, v.zw, quad == 1u));
}

// The scale of the weights from column k on, as far as its block goes.
fn weight_scale(row: u32, k: u32) -> f32 {
    if WEIGHT != 3u {
        return 1.0;
    }
    let block_row = (row + call.scale_skip) / call.block_rows;
    return scales[block_row * call.scale_cols + k / call.block_cols];
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
    let at = call.x_offset + token * call.x_stride + k;
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
