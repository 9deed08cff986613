// One row by its expert's weights in FP4, where a layer has few rows: each is found by its route.
//
// ## Method
// 1. Four subgroups share the rows of the weight that a workgroup takes: `parts` of them a row, in vectors that follow
//    one another. A lane has one vector of each, unless rows are long, and keeps its 32 elements of x in registers
//    for all of them.
// 2. It takes ROWS_OF rows, four at a time, whose loads are under way together. What a code costs decides: sums are
//    chains of fma, and a vector's scale, which is an ordinary one, is a shift of its byte.
// 3. The lanes' sums of four rows are reduced together; those of the parts meet in the workgroup's memory.
//
// In the first half rows are a gate and its up by turns. Of ROWS_OF rows a workgroup takes half where there is little for
// all of a large device.

@group(0) @binding(3) var<storage, read> ids: array<i32>;

const SUBGROUPS: u32 = 4u;

var<workgroup> found: vec4<u32>;
// By part and row.
var<workgroup> sums: array<f32, SUBGROUPS * ROWS_OF>;
var<workgroup> outputs: array<u32, SUBGROUPS * ROWS_OF>;

// Takes the nth row of the window: whether there is one of the buffer's experts, the same for the whole workgroup. Every
// invocation must call it.
fn take_row(n: u32, local: u32) -> bool {
    if local == 0u {
        found = vec4(0u);
        if n < call.rows {
            let route = sorted[call.first_row + n];
            if route >= 0 {
                let expert = u32(ids[route]) - call.items;
                let is_own = expert >= call.first_expert && expert < call.end_expert;
                found = vec4(expert, call.first_row + n, u32(is_own), 0u);
            }
        }
    }
    let own = workgroupUniformLoad(&found);
    item = Item(own.x, own.y, own.z);
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

// The same of four rows, all of whose loads come first.
fn four_sums(rows: vec4<u32>, v: u32, e: Elements) -> vec4<f32> {
    let at = rows * call.row_vectors + vec4(v);
    let a = weights[at.x];
    let b = weights[at.y];
    let c = weights[at.z];
    let d = weights[at.w];
    let word_at = rows * (call.scale_cols / 4u) + vec4(v >> 2u);
    let words = vec4(scales[word_at.x], scales[word_at.y], scales[word_at.z], scales[word_at.w]);
    let shift = (v & 3u) << 3u;
    return vec4(
        vector_sum(a, words.x, shift, e),
        vector_sum(b, words.y, shift, e),
        vector_sum(c, words.z, shift, e),
        vector_sum(d, words.w, shift, e),
    );
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
    let lane = local % LANES;
    let subgroup = local / LANES;
    let parts = select(select(1u, 2u, call.row_vectors > LANES), 4u, call.row_vectors > 2u * LANES);
    let part = subgroup % parts;
    // As the host counts workgroups.
    let rows_of = select(ROWS_OF, ROWS_OF / 2u, call.rows <= FEW_ROWS);
    let own = subgroup / parts * rows_of;
    let count = SUBGROUPS / parts * rows_of;
    let first = group.x * (count / COLUMN_ROWS);
    let x_from = x_start(0u) / 8u;
    let begin = part * LANES + lane;
    let is_long = call.row_vectors > parts * LANES;
    var e = elements_at(x_from, min(begin, call.row_vectors - 1u));
    for (var n = 0u; n < rows_of; n += 4u) {
        let place = own + n;
        let rows = vec4(
            row_at(first, place),
            row_at(first, place + 1u),
            row_at(first, place + 2u),
            row_at(first, place + 3u),
        );
        var four = vec4(0.0);
        if is_long {
            for (var v = begin; v < call.row_vectors; v += parts * LANES) {
                e = elements_at(x_from, v);
                four += four_sums(rows, v, e);
            }
        } else if begin < call.row_vectors {
            four = four_sums(rows, begin, e);
        }
        let total = reduce_four(four, local, lane);
        if lane % 8u == 0u {
            sums[part * count + place + lane / 8u] = total;
        }
    }
    workgroupBarrier();
    if GATED {
        if local < count / 2u {
            let both = vec2(row_sum(2u * local, parts, count), row_sum(2u * local + 1u, parts, count));
            outputs[local] = activated(both.x, both.y, weight_of(0u));
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
