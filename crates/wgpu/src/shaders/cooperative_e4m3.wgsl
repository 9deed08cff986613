// A weight in e4m3 without NaN. Codes times their scale, over the power of two that a row of blocks is
// multiplied by, are exact in f16.

alias Raw = vec4<u32>;

// Where the scales of a row start.
fn row_key(row: u32) -> u32 {
    return call.factors + (row + call.scale_skip) / call.block_rows * call.scale_cols;
}

fn factor_at(key: u32, v: u32) -> f32 {
    return scales[key + (v >> call.scale_shift)];
}

// Four codes as f16s of a 256th of their value: those of an e4m3 are its bits.
fn quad_of_codes(codes: u32) -> vec4<f32> {
    let even = ((codes << 7u) & 0x3f803f80u) | ((codes << 8u) & 0x80008000u);
    let odd = ((codes >> 1u) & 0x3f803f80u) | (codes & 0x80008000u);
    let a = unpack2x16float(even);
    let b = unpack2x16float(odd);
    return vec4(a.x, b.x, a.y, b.y);
}

fn keep(at: u32, raw: Raw, factor: f32, inside: bool) {
    // A scale may be NaN, and what is beyond the row's end shall not matter.
    let codes = select(vec4(0u), raw, inside);
    let by = select(0.0, factor, inside);
    w_tile[at] = vec4<f16>(quad_of_codes(codes.x) * by);
    w_tile[at + 1u] = vec4<f16>(quad_of_codes(codes.y) * by);
    w_tile[at + 2u] = vec4<f16>(quad_of_codes(codes.z) * by);
    w_tile[at + 3u] = vec4<f16>(quad_of_codes(codes.w) * by);
}
