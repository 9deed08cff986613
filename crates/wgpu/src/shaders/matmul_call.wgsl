// y = x * transpose(w) on one window of tokens and one buffer of the weight's rows.

struct MatmulCall {
    tokens: u32,
    // Rows of the weight in this buffer.
    rows: u32,
    // Elements in a row.
    k: u32,
    // Vectors of 16 bytes in a row of the weight, which is padded with zeros.
    row_vectors: u32,
    x_float: u32,
    x_offset: u32,
    x_stride: u32,
    y_float: u32,
    y_offset: u32,
    y_stride: u32,
    // A scale for so many rows and columns; 0 columns where there are no scales.
    block_rows: u32,
    block_cols: u32,
    // Scales in a row of scales: bytes of FP4's, with their padding.
    scale_cols: u32,
    // Rows of the first block that lie before this buffer.
    scale_skip: u32,
    // The logarithm of the vectors that share a scale, where they are a power of two.
    scale_shift: u32,
    // Where both are the rows of a gate and its up: the first of either.
    gate_row: u32,
    up_row: u32,
    // A power of two that undoes what the weight was multiplied by when it was loaded.
    result_scale: f32,
    // On cooperative matrices: where, among the scales, those begin that bring codes to f16, and the exponents
    // that undo what rows were multiplied by, one for `block_rows` of them.
    factors: u32,
    exponents: u32,
    op: Op,
}

var<immediate> call: MatmulCall;

fn tokens() -> u32 {
    return call.tokens;
}

// Where a token's row begins, in elements of x.
fn x_start(token: u32) -> u32 {
    return call.x_offset + token * call.x_stride;
}

// Where a row's scales begin.
fn scale_start(row: u32) -> u32 {
    return (row + call.scale_skip) / call.block_rows * call.scale_cols;
}

// Atomic, because two outputs of 16 bits share a word.
@group(0) @binding(3) var<storage, read_write> y: array<atomic<u32>>;

// Two halves of a word may be stored by two invocations: each clears and sets its own.
fn store(token: u32, row: u32, value: f32) {
    let at = call.y_offset + token * call.y_stride + row;
    let bits = narrow_as(call.y_float, value);
    if call.y_float == 0u {
        atomicStore(&y[at], bits);
        return;
    }
    let shift = (at & 1u) << 4u;
    atomicAnd(&y[at >> 1u], ~(0xffffu << shift));
    atomicOr(&y[at >> 1u], bits << shift);
}

// Four outputs of a token, as far as there are rows; words that are all its own at once.
fn store_quad(token: u32, row: u32, values: vec4<f32>) {
    if token >= call.tokens {
        return;
    }
    let at = call.y_offset + token * call.y_stride + row;
    if call.y_float != 0u && at % 2u == 0u && row + 4u <= call.rows {
        let a = narrow_as(call.y_float, values.x) | (narrow_as(call.y_float, values.y) << 16u);
        let b = narrow_as(call.y_float, values.z) | (narrow_as(call.y_float, values.w) << 16u);
        atomicStore(&y[at / 2u], a);
        atomicStore(&y[at / 2u + 1u], b);
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if row + i < call.rows {
            store(token, row + i, values[i]);
        }
    }
}
