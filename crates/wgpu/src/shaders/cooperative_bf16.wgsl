// A weight in bf16. Each row is multiplied by the power of two under which all of it is exact in f16.

alias Raw = vec4<u32>;

fn row_key(row: u32) -> u32 {
    return bitcast<u32>(power_of_two(-row_exponent(row)));
}

fn factor_at(key: u32, v: u32) -> f32 {
    return bitcast<f32>(key);
}

fn keep(at: u32, raw: Raw, factor: f32, inside: bool) {
    let by = select(0.0, factor, inside);
    w_tile[at] = vec4<f16>(widen_pairs(2u, raw.xy) * by);
    w_tile[at + 1u] = vec4<f16>(widen_pairs(2u, raw.zw) * by);
}
