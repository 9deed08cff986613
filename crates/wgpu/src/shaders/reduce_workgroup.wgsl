var<workgroup> partial: array<vec2<f32>, LANES * ROWS>;

// The sums over the lanes of a row. Every invocation of the workgroup must call it.
fn reduce(values: vec2<f32>, local: u32, lane: u32) -> vec2<f32> {
    // What an earlier call left has been read by all.
    workgroupBarrier();
    partial[local] = values;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane < half {
            partial[local] += partial[local + half];
        }
        workgroupBarrier();
    }
    return partial[local - lane];
}

