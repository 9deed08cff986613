// For up to four tokens of any type and place: LANES invocations share a row of the weight, which is
// read once.

// Four weights with each of the tokens.
fn dots(w: vec4<f32>, k: u32) -> vec4<f32> {
    let last = tokens() - 1u;
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
    if QUADS > 4u {
        sum += dots(weight_quad(vector, 4u), k + 16u);
        sum += dots(weight_quad(vector, 5u), k + 20u);
        sum += dots(weight_quad(vector, 6u), k + 24u);
        sum += dots(weight_quad(vector, 7u), k + 28u);
    }
    return sum;
}

// What one vector of a row adds to the sums.
fn terms(vector: vec4<u32>, row: u32, v: u32) -> vec4<f32> {
    let k = v * QUADS * 4u;
    return scaled(vector_dots(vector, k), weight_scale(row, k));
}
