// For few tokens: LANES invocations share a row of the weight, which is read once.

@compute @workgroup_size(LANES * ROWS)
fn product_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let wanted = (group.y * groups.x + group.x) * ROWS + local / LANES;
    // The reduction needs every invocation: those without a row do the last again.
    let row = min(wanted, call.rows - 1u);
    let lane = local % LANES;
    var sums: array<f32, TOKENS>;
    for (var v = lane; v < call.row_vectors; v += LANES) {
        let vector = weights[row * call.row_vectors + v];
        let k = v * QUADS * 4u;
        let scale = weight_scale(row, k);
        var parts: array<f32, TOKENS>;
        for (var q = 0u; q < QUADS; q++) {
            let w = weight_quad(vector, q);
            for (var t = 0u; t < TOKENS; t++) {
                parts[t] += dot(w, x_quad(min(t, call.tokens - 1u), k + 4u * q));
            }
        }
        for (var t = 0u; t < TOKENS; t++) {
            sums[t] += scale * parts[t];
        }
    }
    for (var t = 0u; t < TOKENS; t++) {
        let sum = reduce(sums[t], local, lane);
        if lane == 0u && t < call.tokens && wanted == row {
            store(t, row, sum);
        }
    }
}
