// A row of one weight at a time.

@compute @workgroup_size(LANES * ROWS)
fn gemv_any(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let wanted = (group.y * groups.x + group.x) * ROWS + local / LANES;
    // The reduction needs every invocation: those without a row do the last again.
    let row = min(wanted, call.rows - 1u);
    let lane = local % LANES;
    let start = row * call.row_vectors;
    var sums = vec4(0.0);
    for (var v = lane; v < call.row_vectors; v += LANES) {
        sums += terms(weights[start + v], row, v);
    }
    let low = reduce(sums.xy, local, lane);
    let high = reduce(sums.zw, local, lane);
    let all = vec4(low, high);
    if wanted == row && lane < min(4u, call.tokens) {
        store(lane, row, all[lane] * call.result_scale);
    }
}
