// One row by its expert's weights in FP4, where a layer has few rows: each is found by its route.
//
// ## Method
// 1. Four subgroups share the rows of the weight that a workgroup takes: `parts` of them a row, in vectors that follow
//    one another. A lane has one vector of each at a time, and keeps its 32 elements of x in registers for all of them.
// 2. Rows go four at a time, whose loads are under way together. What a code costs decides: sums are chains of fma, and
//    a vector's scale, which is an ordinary one, is a shift of its byte.
// 3. The lanes' sums of four rows are reduced together; those of the parts meet in the workgroup's memory.
// 4. Memory is far, so what is not needed of it is read too, at once: an invocation looks up the expert and the weight of
//    the route of its own number, in case the row's route is that one.
//
// In the first half rows are a gate and its up by turns. Experts lie in several buffers, as many in each but the last.
// `call.block_cols` says how many, and `call.block_rows` how many rows of the weight subgroups that share one take:
// ROWS_OF, or half as many where there is little for all of a large device.

@group(0) @binding(3) var<storage, read> ids: array<i32>;
#buffers

const SUBGROUPS: u32 = 4u;

var<workgroup> found: vec4<u32>;
// By part and row.
var<workgroup> sums: array<f32, SUBGROUPS * ROWS_OF>;
var<workgroup> outputs: array<u32, SUBGROUPS * ROWS_OF>;

// The buffer with the item's expert, which is counted from that buffer's first.
var<private> buffer_number: u32;
var<private> route_weight: f32;

// The expert of a route, the row, whether it is one of the buffers', and the route's weight.
fn found_by(route: u32, row: u32) -> vec4<u32> {
    let expert = u32(ids[route]) - call.items;
    let is_own = expert >= call.first_expert && expert < call.end_expert;
    var weight = 0.0;
    if GATED {
        weight = route_weights[route];
    }
    return vec4(expert - call.first_expert, row, u32(is_own), bitcast<u32>(weight));
}

// Takes the nth row of the window: whether there is one of the buffers' experts, the same for the whole workgroup. Every
// invocation must call it.
fn take_row(n: u32, local: u32) -> bool {
    let row = call.first_row + min(n, call.rows - 1u);
    let near = found_by(min(local, arrayLength(&ids) - 1u), row);
    let route = sorted[row];
    if route < 0 || n >= call.rows {
        if local == 0u {
            found = vec4(0u);
        }
    } else if u32(route) == local {
        found = near;
    } else if local == 0u && u32(route) >= LANES * SUBGROUPS {
        found = found_by(u32(route), row);
    }
    let own = workgroupUniformLoad(&found);
    buffer_number = min(own.x / call.block_cols, BUFFERS - 1u);
    item = Item(call.first_expert + own.x % call.block_cols, own.y, own.z);
    route_weight = bitcast<f32>(own.w);
    return own.z != 0u;
}

// The buffer's row of the weight at a place among those of the workgroup, whose first column is given.
fn row_at(first: u32, place: u32) -> u32 {
    if GATED {
        return weight_row(place % 2u, first + place / 2u);
    }
    return weight_row(0u, first + place);
}

fn with_eight(sum: f32, codes: u32, low: vec4<f32>, high: vec4<f32>) -> f32 {
    let w = widen_e2m1(codes);
    var s = fma(w[0].x, low.x, sum);
    s = fma(w[0].y, low.y, s);
    s = fma(w[0].z, low.z, s);
    s = fma(w[0].w, low.w, s);
    s = fma(w[1].x, high.x, s);
    s = fma(w[1].y, high.y, s);
    s = fma(w[1].z, high.z, s);
    return fma(w[1].w, high.w, s);
}

// A lane's elements of x.
struct Elements {
    a: mat2x4<f32>,
    b: mat2x4<f32>,
    c: mat2x4<f32>,
    d: mat2x4<f32>,
}

fn elements_at(x_from: u32, v: u32) -> Elements {
    let at = x_from + 4u * v;
    return Elements(eight_at(at), eight_at(at + 1u), eight_at(at + 2u), eight_at(at + 3u));
}

fn eight_at(at: u32) -> mat2x4<f32> {
    let v = x[at];
    return mat2x4(widen_four(2u, v.xy), widen_four(2u, v.zw));
}

// A vector of codes times its scale, the byte of a word that lies so many bits up.
fn vector_sum(codes: vec4<u32>, word: u32, shift: u32, e: Elements) -> f32 {
    var sum = with_eight(0.0, codes.x, e.a[0], e.a[1]);
    sum = with_eight(sum, codes.y, e.b[0], e.b[1]);
    sum = with_eight(sum, codes.z, e.c[0], e.c[1]);
    sum = with_eight(sum, codes.w, e.d[0], e.d[1]);
    // Codes are 2^-14 of their value.
    return sum * bitcast<f32>((((word >> shift) & 0xffu) + 14u) << 23u);
}

// The vectors of four rows, and the words with their scales.
struct Four {
    a: vec4<u32>,
    b: vec4<u32>,
    c: vec4<u32>,
    d: vec4<u32>,
    words: vec4<u32>,
}

fn load_four(first: u32, place: u32, v: u32) -> Four {
    let rows = vec4(
        row_at(first, place),
        row_at(first, place + 1u),
        row_at(first, place + 2u),
        row_at(first, place + 3u),
    );
    let at = rows * call.row_vectors + vec4(v);
    let word = rows * (call.scale_cols / 4u) + vec4(v >> 2u);
    switch buffer_number {
#cases
    }
}

// Adds up four rows, whose sums in the workgroup's memory begin there. Every invocation of the workgroup must call it.
fn add_up_four(four: Four, e: Elements, v: u32, to: u32, is_first: bool, local: u32) {
    let shift = (v & 3u) << 3u;
    let own = vec4(
        vector_sum(four.a, four.words.x, shift, e),
        vector_sum(four.b, four.words.y, shift, e),
        vector_sum(four.c, four.words.z, shift, e),
        vector_sum(four.d, four.words.w, shift, e),
    );
    let lane = local % LANES;
    var total = reduce_four(own, local, lane);
    if lane % 8u == 0u {
        let at = to + lane / 8u;
        if !is_first {
            total += sums[at];
        }
        sums[at] = total;
    }
}

// Adds up so many rows, a multiple of four, from a place on. Every invocation of the workgroup must call it.
fn add_up(first: u32, place: u32, rows_of: u32, parts: u32, part: u32, local: u32) {
    let x_from = x_start(0u) / 8u;
    let to = part * (SUBGROUPS / parts * rows_of) + place;
    for (var begin = 0u; begin < call.row_vectors; begin += parts * LANES) {
        let own = begin + part * LANES + local % LANES;
        let v = min(own, call.row_vectors - 1u);
        var e: Elements;
        if own < call.row_vectors {
            e = elements_at(x_from, v);
        }
        for (var n = 0u; n < rows_of; n += 4u) {
            let four = load_four(first, place + n, v);
            add_up_four(four, e, v, to + n, begin == 0u, local);
        }
    }
}

@compute @workgroup_size(LANES * SUBGROUPS)
fn grouped_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    if !take_row(group.z * groups.y + group.y, local) {
        return;
    }
    let parts = select(select(1u, 2u, call.row_vectors > LANES), 4u, call.row_vectors > 2u * LANES);
    let part = local / LANES % parts;
    // As the host counts workgroups.
    let rows_of = call.block_rows;
    let own = local / LANES / parts * rows_of;
    let count = SUBGROUPS / parts * rows_of;
    let first = group.x * (count / COLUMN_ROWS);
    // With constants loops are better.
    if rows_of == ROWS_OF {
        add_up(first, own, ROWS_OF, parts, part, local);
    } else {
        add_up(first, own, ROWS_OF / 2u, parts, part, local);
    }
    workgroupBarrier();
    if GATED {
        if local < count / 2u {
            let both = vec2(row_sum(2u * local, parts, count), row_sum(2u * local + 1u, parts, count));
            outputs[local] = activated(both.x, both.y, route_weight);
        }
    } else if local < count {
        outputs[local] = narrow_bf16(row_sum(local, parts, count));
    }
    workgroupBarrier();
    let col = 2u * local;
    if col < count / COLUMN_ROWS && first + col < call.cols && is_inside(0u) {
        store_pair(0u, first + col, vec2(outputs[col], outputs[col + 1u]));
    }
}

fn row_sum(place: u32, parts: u32, count: u32) -> f32 {
    var sum = sums[place];
    for (var part = 1u; part < parts; part++) {
        sum += sums[part * count + place];
    }
    return sum;
}
