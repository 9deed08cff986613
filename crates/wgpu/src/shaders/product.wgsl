// y = x * transpose(w) on one window of tokens and one buffer of the weight's rows.

struct Call {
    tokens: u32,
    // Rows of the weight in this buffer.
    rows: u32,
    // Elements in a row.
    k: u32,
    // Vectors of 16 bytes in a row of the weight, which is padded with zeros.
    row_vectors: u32,
    x_dtype: u32,
    x_offset: u32,
    x_stride: u32,
    y_dtype: u32,
    y_offset: u32,
    y_stride: u32,
    // A scale for so many rows and columns; 0 columns where there are no scales.
    block_rows: u32,
    block_cols: u32,
    // Scales in a row of scales.
    scale_cols: u32,
    // Rows of the first block that lie before this buffer.
    scale_skip: u32,
}

var<immediate> call: Call;

@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
// Atomic, because two outputs of 16 bits share a word.
@group(0) @binding(3) var<storage, read_write> y: array<atomic<u32>>;

// Groups of four elements in a vector of the weight: 1, 2 or 4.
override QUADS: u32;

// Whether x is in whole vectors: no row of it ends or starts within one.
override ALIGNED: bool;

// Whether e4m3 is decoded as f16, which some drivers take to 0 where it is subnormal.
override E4M3_AS_F16: bool;

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
    if DTYPE == 0u {
        return bitcast<vec4<f32>>(v);
    }
    if DTYPE == 3u {
        if E4M3_AS_F16 {
            return widen_e4m3_as_f16(v[quad]);
        }
        return widen_e4m3(v[quad]);
    }
    return widen_pairs(DTYPE, select(v.xy, v.zw, quad == 1u));
}

// The scale of the weights from column k on, as far as its block goes.
fn weight_scale(row: u32, k: u32) -> f32 {
    if DTYPE != 3u {
        return 1.0;
    }
    let block_row = (row + call.scale_skip) / call.block_rows;
    return scales[block_row * call.scale_cols + k / call.block_cols];
}

fn x_element(position: u32) -> f32 {
    if call.x_dtype == 0u {
        return bitcast<f32>(x[position >> 2u][position & 3u]);
    }
    let pair = x[position >> 3u][(position >> 1u) & 3u];
    return widen_as(call.x_dtype, (pair >> ((position & 1u) << 4u)) & 0xffffu);
}

// Four elements of x from k on, a multiple of four; zeros beyond the row, if rows are not aligned.
fn x_quad(token: u32, k: u32) -> vec4<f32> {
    let at = call.x_offset + token * call.x_stride + k;
    if ALIGNED {
        if call.x_dtype == 0u {
            return bitcast<vec4<f32>>(x[at >> 2u]);
        }
        let v = x[at >> 3u];
        return widen_pairs(call.x_dtype, select(v.xy, v.zw, (at & 4u) != 0u));
    }
    var quad = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        if k + i < call.k {
            quad[i] = x_element(at + i);
        }
    }
    return quad;
}

// Two halves of a word may be stored by two invocations: each clears and sets its own.
fn store(token: u32, row: u32, value: f32) {
    let at = call.y_offset + token * call.y_stride + row;
    let bits = narrow_as(call.y_dtype, value);
    if call.y_dtype == 0u {
        atomicStore(&y[at], bits);
        return;
    }
    let shift = (at & 1u) << 4u;
    atomicAnd(&y[at >> 1u], ~(0xffffu << shift));
    atomicOr(&y[at >> 1u], bits << shift);
}
