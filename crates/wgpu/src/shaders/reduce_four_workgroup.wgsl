var<workgroup> partial: array<vec4<f32>, LANES * SUBGROUPS>;

// The sums over the lanes of four values: in each eight lanes those of one. Every invocation of the workgroup must call it.
fn reduce_four(values: vec4<f32>, local: u32, lane: u32) -> f32 {
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
    return partial[local - lane][lane / 8u];
}
