// For up to four tokens of any type and place: LANES invocations share a row of the weight, which is
// read once.

// Four weights with each of the tokens.
fn dots(w: vec4<f32>, k: u32) -> vec4<f32> {
    let last = call.tokens - 1u;
    return vec4(
        dot(w, x_quad(0u, k)),
        dot(w, x_quad(min(1u, last), k)),
        dot(w, x_quad(min(2u, last), k)),
        dot(w, x_quad(min(3u, last), k)),
    );
}

fn vector_dots(vector: vec4<u32>, k: u32) -> vec4<f32> {
    var sum = dots(weight_quad(vector, 0u), k);
    if QUADS > 1u {
        sum += dots(weight_quad(vector, 1u), k + 4u);
    }
    if QUADS > 2u {
        sum += dots(weight_quad(vector, 2u), k + 8u);
        sum += dots(weight_quad(vector, 3u), k + 12u);
    }
    return sum;
}

// What one vector of a row adds to the sums.
fn terms(vector: vec4<u32>, row: u32, v: u32) -> vec4<f32> {
    let k = v * QUADS * 4u;
    return weight_scale(row, k) * vector_dots(vector, k);
}

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
