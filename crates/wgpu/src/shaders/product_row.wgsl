// For one token, aligned: LANES invocations take two rows of the weight side by side, so that what
// they read of x serves both, and share them with as many others: one half of the vectors each.

const PARTS: u32 = 2u;
const STEP: u32 = PARTS * LANES;

var<workgroup> parts: array<vec2<f32>, ROWS>;

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

fn scaled_dot(row_scales: u32, v: u32, dot_of_codes: f32) -> f32 {
    return scales[row_scales + (v >> call.scale_shift)] * dot_of_codes;
}

fn dot_of_codes(w: vec4<u32>, x: mat4x4<f32>) -> f32 {
    return (dot(quad_of_codes(w.x), x[0]) + dot(quad_of_codes(w.y), x[1]))
        + (dot(quad_of_codes(w.z), x[2]) + dot(quad_of_codes(w.w), x[3]));
}

fn dot_of_halves(w: vec4<u32>, x: mat2x4<f32>) -> f32 {
    return dot(widen_four(DTYPE, w.xy), x[0]) + dot(widen_four(DTYPE, w.zw), x[1]);
}

// Eight elements of x from k on.
fn x_eight(k: u32) -> mat2x4<f32> {
    let at = call.x_offset + k;
    if x_dtype() == 0u {
        return mat2x4(bitcast<vec4<f32>>(x[at >> 2u]), bitcast<vec4<f32>>(x[(at >> 2u) + 1u]));
    }
    let v = x[at >> 3u];
    return mat2x4(widen_four(x_dtype(), v.xy), widen_four(x_dtype(), v.zw));
}

// What the vectors numbered v of two rows add to the rows' sums.
fn terms(a: vec4<u32>, b: vec4<u32>, row_scales: vec2<u32>, v: u32) -> vec2<f32> {
    if DTYPE == 0u {
        let quad = x_quad(0u, 4u * v);
        return vec2(dot(bitcast<vec4<f32>>(a), quad), dot(bitcast<vec4<f32>>(b), quad));
    }
    if DTYPE == 3u {
        let low = x_eight(16u * v);
        let high = x_eight(16u * v + 8u);
        let x16 = mat4x4(low[0], low[1], high[0], high[1]);
        return vec2(
            scaled_dot(row_scales.x, v, dot_of_codes(a, x16)),
            scaled_dot(row_scales.y, v, dot_of_codes(b, x16)),
        );
    }
    let eight = x_eight(8u * v);
    return vec2(dot_of_halves(a, eight), dot_of_halves(b, eight));
}

// Where a row's scales start.
fn scales_of(row: u32) -> u32 {
    if DTYPE != 3u {
        return 0u;
    }
    return (row + call.scale_skip) / call.block_rows * call.scale_cols;
}

@compute @workgroup_size(LANES * ROWS)
fn product_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local % LANES;
    let lanes = local / LANES;
    let part = lanes % PARTS;
    let first = (group.y * groups.x + group.x) * ROWS + lanes / PARTS * 2u;
    // The reductions need every invocation: those without a row do the last again.
    let rows = min(vec2(first, first + 1u), vec2(call.rows - 1u));
    let starts = rows * call.row_vectors;
    let row_scales = vec2(scales_of(rows.x), scales_of(rows.y));
    var sums = vec2(0.0);
    var v = part * LANES + lane;
    // Four loads of weights under way at once.
    for (; v + STEP < call.row_vectors; v += 2u * STEP) {
        let a = weights[starts.x + v];
        let b = weights[starts.y + v];
        let c = weights[starts.x + v + STEP];
        let d = weights[starts.y + v + STEP];
        sums += terms(a, b, row_scales, v);
        sums += terms(c, d, row_scales, v + STEP);
    }
    if v < call.row_vectors {
        sums += terms(weights[starts.x + v], weights[starts.y + v], row_scales, v);
    }
    let of_lanes = vec2(reduce(sums.x, local, lane), reduce(sums.y, local, lane));
    if lane == 0u {
        parts[lanes] = of_lanes;
    }
    workgroupBarrier();
    if lane == 0u && part == 0u {
        var total = parts[lanes];
        for (var i = 1u; i < PARTS; i++) {
            total += parts[lanes + i];
        }
        store_two(first, total * select(1.0, 256.0, DTYPE == 3u));
    }
}

// The outputs of two rows, as far as there are such.
fn store_two(row: u32, values: vec2<f32>) {
    let at = call.y_offset + row;
    if call.y_dtype != 0u && at % 2u == 0u && row + 1u < call.rows {
        let low = narrow_as(call.y_dtype, values.x);
        atomicStore(&y[at / 2u], low | (narrow_as(call.y_dtype, values.y) << 16u));
        return;
    }
    if row < call.rows {
        store(0u, row, values.x);
    }
    if row + 1u < call.rows {
        store(0u, row + 1u, values.y);
    }
}
