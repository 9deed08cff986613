// For few tokens: LANES invocations share a row of the weight, which is read once.

// A sum for each of up to eight tokens.
struct Sums {
    first: vec4<f32>,
    second: vec4<f32>,
}

// Four weights with four tokens, or with one.
fn dots(w: vec4<f32>, token: u32, k: u32) -> vec4<f32> {
    let last = call.tokens - 1u;
    if TOKENS == 1u {
        return vec4(dot(w, x_quad(0u, k)), 0.0, 0.0, 0.0);
    }
    return vec4(
        dot(w, x_quad(min(token, last), k)),
        dot(w, x_quad(min(token + 1u, last), k)),
        dot(w, x_quad(min(token + 2u, last), k)),
        dot(w, x_quad(min(token + 3u, last), k)),
    );
}

fn vector_dots(vector: vec4<u32>, token: u32, k: u32) -> vec4<f32> {
    var sum = dots(weight_quad(vector, 0u), token, k);
    if QUADS > 1u {
        sum += dots(weight_quad(vector, 1u), token, k + 4u);
    }
    if QUADS > 2u {
        sum += dots(weight_quad(vector, 2u), token, k + 8u);
        sum += dots(weight_quad(vector, 3u), token, k + 12u);
    }
    return sum;
}

fn add(sums: Sums, vector: vec4<u32>, row: u32, v: u32) -> Sums {
    let k = v * QUADS * 4u;
    let scale = weight_scale(row, k);
    var next = sums;
    next.first += scale * vector_dots(vector, 0u, k);
    if TOKENS > 4u {
        next.second += scale * vector_dots(vector, 4u, k);
    }
    return next;
}

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
    let start = row * call.row_vectors;
    var sums = Sums(vec4(0.0), vec4(0.0));
    var v = lane;
    // Four loads under way at once; with more tokens there is enough to do for each.
    for (; TOKENS == 1u && v + 3u * LANES < call.row_vectors; v += 4u * LANES) {
        let a = weights[start + v];
        let b = weights[start + v + LANES];
        let c = weights[start + v + 2u * LANES];
        let d = weights[start + v + 3u * LANES];
        sums = add(sums, a, row, v);
        sums = add(sums, b, row, v + LANES);
        sums = add(sums, c, row, v + 2u * LANES);
        sums = add(sums, d, row, v + 3u * LANES);
    }
    for (; v < call.row_vectors; v += LANES) {
        sums = add(sums, weights[start + v], row, v);
    }
    for (var t = 0u; t < min(TOKENS, call.tokens); t++) {
        let own = select(sums.first, sums.second, t >= 4u)[t % 4u];
        let sum = reduce(own, local, lane);
        if lane == 0u && wanted == row {
            store(t, row, sum);
        }
    }
}
