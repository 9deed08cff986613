// What stands in for cooperative matrices in tests: 32 invocations hold a matrix's sums, eight each, and
// read its factors where they lie.

struct Sums {
    low: vec4<f32>,
    high: vec4<f32>,
}

var<private> lane: u32;

fn enter(local: u32) {
    lane = local % 32u;
}

fn with_products(sums: Sums, tokens: u32, rows: u32) -> Sums {
    var grown = sums;
    let row = rows + lane % 2u * 8u * LINE;
    // A bound that is no constant: unrolled, this would take minutes to compile.
    let four = min(4u, call.k);
    for (var quad = 0u; quad < four; quad++) {
        let a = vec4<f32>(x_tile[tokens + lane / 2u * LINE + quad]);
        for (var i = 0u; i < four; i++) {
            grown.low[i] += dot(a, vec4<f32>(w_tile[row + i * LINE + quad]));
            grown.high[i] += dot(a, vec4<f32>(w_tile[row + (i + 4u) * LINE + quad]));
        }
    }
    return grown;
}

fn stage(sums: Sums, at: u32) {
    let own = at + lane * 8u;
    for (var i = 0u; i < 4u; i++) {
        staged[own + i] = sums.low[i];
        staged[own + 4u + i] = sums.high[i];
    }
}
