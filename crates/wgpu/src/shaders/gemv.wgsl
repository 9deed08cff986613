// Few tokens by a weight, both in whole vectors.
//
// ## Method
// 1. LANES invocations take two rows of the weight side by side, so that what they read of x serves
//    both, and share them with as many others: one half of the vectors each.
// 2. Four loads of the weight are under way at once. What is decoded serves all tokens.
// 3. The lanes' sums are reduced, and those of the two halves meet in the workgroup's memory.
//
// A line with #t is there for each of TOKENS tokens; those beyond the call's do the last one again.

const PARTS: u32 = 2u;
const STEP: u32 = PARTS * LANES;

// Of two rows, with each token.
struct Sums {
    s#t: vec2<f32>,
}

// Where each token starts, in vectors of x.
struct Places {
    x#t: u32,
}

// By subgroup and token.
var<workgroup> parts: array<vec2<f32>, ROWS * TOKENS>;

// Four weights in a word of e4m3 none of which is NaN, as 256ths.
fn quad_of_codes(codes: u32) -> vec4<f32> {
    if E4M3_AS_F16 {
        let even = ((codes << 7u) & 0x3f803f80u) | ((codes << 8u) & 0x80008000u);
        let odd = ((codes >> 1u) & 0x3f803f80u) | (codes & 0x80008000u);
        let a = unpack2x16float(even);
        let b = unpack2x16float(odd);
        return vec4(a.x, b.x, a.y, b.y);
    }
    return widen_e4m3(codes) * 0.00390625;
}

fn sixteen_of_codes(w: vec4<u32>) -> mat4x4<f32> {
    return mat4x4(
        quad_of_codes(w.x),
        quad_of_codes(w.y),
        quad_of_codes(w.z),
        quad_of_codes(w.w),
    );
}

fn eight_of(float: u32, v: vec4<u32>) -> mat2x4<f32> {
    return mat2x4(widen_four(float, v.xy), widen_four(float, v.zw));
}

fn dot_of_eights(w: mat2x4<f32>, x: mat2x4<f32>) -> f32 {
    return dot(w[0], x[0]) + dot(w[1], x[1]);
}

fn dot_of_sixteens(w: mat4x4<f32>, low: mat2x4<f32>, high: mat2x4<f32>) -> f32 {
    return (dot(w[0], low[0]) + dot(w[1], low[1])) + (dot(w[2], high[0]) + dot(w[3], high[1]));
}

// The 32 codes of FP4 in a vector.
struct Codes {
    a: mat2x4<f32>,
    b: mat2x4<f32>,
    c: mat2x4<f32>,
    d: mat2x4<f32>,
}

fn codes_of(w: vec4<u32>) -> Codes {
    return Codes(widen_e2m1(w.x), widen_e2m1(w.y), widen_e2m1(w.z), widen_e2m1(w.w));
}

fn dots_of_codes(a: Codes, b: Codes, at: u32) -> vec2<f32> {
    let x0 = eight_of(X_FLOAT, x[at]);
    let x1 = eight_of(X_FLOAT, x[at + 1u]);
    let low = vec2(
        dot_of_eights(a.a, x0) + dot_of_eights(a.b, x1),
        dot_of_eights(b.a, x0) + dot_of_eights(b.b, x1),
    );
    let x2 = eight_of(X_FLOAT, x[at + 2u]);
    let x3 = eight_of(X_FLOAT, x[at + 3u]);
    return low + vec2(
        dot_of_eights(a.c, x2) + dot_of_eights(a.d, x3),
        dot_of_eights(b.c, x2) + dot_of_eights(b.d, x3),
    );
}

fn dots_of_fours(a: vec4<f32>, b: vec4<f32>, at: u32) -> vec2<f32> {
    let quad = bitcast<vec4<f32>>(x[at]);
    return vec2(dot(a, quad), dot(b, quad));
}

fn dots_of_eights(a: mat2x4<f32>, b: mat2x4<f32>, at: u32) -> vec2<f32> {
    let eight = eight_of(X_FLOAT, x[at]);
    return vec2(dot_of_eights(a, eight), dot_of_eights(b, eight));
}

fn dots_of_sixteens(a: mat4x4<f32>, b: mat4x4<f32>, at: u32) -> vec2<f32> {
    let low = eight_of(X_FLOAT, x[at]);
    let high = eight_of(X_FLOAT, x[at + 1u]);
    return vec2(dot_of_sixteens(a, low, high), dot_of_sixteens(b, low, high));
}

// The sums with what the vectors numbered v of two rows add to them.
fn with_terms(
    sums: Sums,
    a: vec4<u32>,
    b: vec4<u32>,
    row_scales: vec2<u32>,
    places: Places,
    v: u32,
) -> Sums {
    var grown = sums;
    if WEIGHT == 0u {
        let wa = bitcast<vec4<f32>>(a);
        let wb = bitcast<vec4<f32>>(b);
        grown.s#t += dots_of_fours(wa, wb, places.x#t + v);
    } else if WEIGHT == 3u {
        let wa = sixteen_of_codes(a);
        let wb = sixteen_of_codes(b);
        let scale_at = row_scales + vec2(v >> call.scale_shift);
        let two = bitcast<vec2<f32>>(vec2(scales[scale_at.x], scales[scale_at.y]));
        grown.s#t += two * dots_of_sixteens(wa, wb, places.x#t + 2u * v);
    } else if WEIGHT == 4u {
        let wa = codes_of(a);
        let wb = codes_of(b);
        let of_a = e8m0_at(row_scales.x + v);
        let of_b = e8m0_at(row_scales.y + v);
        let first = vec2(of_a.x, of_b.x);
        let second = vec2(of_a.y, of_b.y);
        grown.s#t += (first * dots_of_codes(wa, wb, places.x#t + 4u * v)) * second;
    } else {
        let wa = eight_of(WEIGHT, a);
        let wb = eight_of(WEIGHT, b);
        grown.s#t += dots_of_eights(wa, wb, places.x#t + v);
    }
    return grown;
}

// Where a row's scales start.
fn scales_of(row: u32) -> u32 {
    if WEIGHT < 3u {
        return 0u;
    }
    return scale_start(row);
}

// Adds up two rows, and leaves the subgroups' sums in the workgroup's memory. Every invocation of
// the workgroup must call it.
fn add_up(rows: vec2<u32>, local: u32) {
    let lane = local % LANES;
    let subgroup = local / LANES;
    let starts = rows * call.row_vectors;
    let row_scales = vec2(scales_of(rows.x), scales_of(rows.y));
    let last = tokens() - 1u;
    let per_vector = select(8u, 4u, X_FLOAT == 0u);
    var places: Places;
    places.x#t = x_start(min(#tu, last)) / per_vector;
    var sums: Sums;
    var v = subgroup % PARTS * LANES + lane;
    // Four loads of weights under way at once.
    for (; v + STEP < call.row_vectors; v += 2u * STEP) {
        let a = weights[starts.x + v];
        let b = weights[starts.y + v];
        let c = weights[starts.x + v + STEP];
        let d = weights[starts.y + v + STEP];
        sums = with_terms(sums, a, b, row_scales, places, v);
        sums = with_terms(sums, c, d, row_scales, places, v + STEP);
    }
    if v < call.row_vectors {
        let a = weights[starts.x + v];
        let b = weights[starts.y + v];
        sums = with_terms(sums, a, b, row_scales, places, v);
    }
    let of_lanes#t = reduce(sums.s#t, local, lane);
    if lane == 0u {
        parts[subgroup * TOKENS + #tu] = of_lanes#t;
    }
    workgroupBarrier();
}

// What two rows sum to with a token, from the first of the subgroups that shared them.
fn total(subgroup: u32, token: u32) -> vec2<f32> {
    var total = parts[subgroup * TOKENS + token];
    for (var i = 1u; i < PARTS; i++) {
        total += parts[(subgroup + i) * TOKENS + token];
    }
    // One factor: in two steps, a sum could leave the range of f32 on the way.
    return total * (select(1.0, 256.0, WEIGHT == 3u) * call.result_scale);
}
