// A weight in f16, as it comes.

alias Raw = vec4<f16>;

fn row_key(row: u32) -> u32 {
    return 0u;
}

fn factor_at(key: u32, v: u32) -> f32 {
    return 1.0;
}

fn keep(at: u32, raw: Raw, factor: f32, inside: bool) {
    w_tile[at] = select(vec4<f16>(), raw, inside);
}
