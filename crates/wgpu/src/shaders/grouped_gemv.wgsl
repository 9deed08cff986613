// Few rows of an expert by its weights.
//
// ## Method
// 1. A workgroup makes OUTPUTS columns of an item, from PAIRS pairs of rows of the weight; in the first half a pair
//    is a gate's and its up's. So many because what comes before (the item, where its rows are) and behind (the
//    activation) waits for memory and for few invocations.
// 2. LANES invocations take one pair after another, whole. Sums of even and of odd steps are apart until they are
//    reduced: as in a matmul by itself, where the two are different subgroups', so that the bits are the same.
// 3. Rows of the item go TOKENS at a time. What is read of the weight comes from caches then.

const PER_SUBGROUP: u32 = PAIRS / ROWS;

// By row of the item and pair: the bits of two sums, then of what is stored.
var<workgroup> outputs: array<vec2<u32>, TOKENS * PAIRS>;

// How many of the item's rows there are from `TOKENS` on, of which the kernel holds the first.
var<private> present: u32;

// Adds up a pair of rows, and leaves the sums in the workgroup's memory. Every invocation of the workgroup must call
// it.
fn add_up_pair(pair: u32, rows: vec2<u32>, places: Places, local: u32, lane: u32) {
    let starts = rows * call.row_vectors;
    let row_scales = vec2(scales_of(rows.x), scales_of(rows.y));
    var even: Sums;
    var odd: Sums;
    var v = lane;
    // Eight loads of weights under way at once, where there are as many.
    for (; v + 3u * LANES < call.row_vectors; v += 4u * LANES) {
        let a = weights[starts.x + v];
        let b = weights[starts.y + v];
        let c = weights[starts.x + v + LANES];
        let d = weights[starts.y + v + LANES];
        let e = weights[starts.x + v + 2u * LANES];
        let f = weights[starts.y + v + 2u * LANES];
        let g = weights[starts.x + v + 3u * LANES];
        let h = weights[starts.y + v + 3u * LANES];
        even = with_terms(even, a, b, row_scales, places, v);
        odd = with_terms(odd, c, d, row_scales, places, v + LANES);
        even = with_terms(even, e, f, row_scales, places, v + 2u * LANES);
        odd = with_terms(odd, g, h, row_scales, places, v + 3u * LANES);
    }
    for (; v + LANES < call.row_vectors; v += 2u * LANES) {
        let a = weights[starts.x + v];
        let b = weights[starts.y + v];
        let c = weights[starts.x + v + LANES];
        let d = weights[starts.y + v + LANES];
        even = with_terms(even, a, b, row_scales, places, v);
        odd = with_terms(odd, c, d, row_scales, places, v + LANES);
    }
    if v < call.row_vectors {
        let a = weights[starts.x + v];
        let b = weights[starts.y + v];
        even = with_terms(even, a, b, row_scales, places, v);
    }
    // As `total` has it.
    let factor = select(1.0, 256.0, WEIGHT == 3u) * call.result_scale;
    let of_even#t = reduce(even.s#t, local, lane);
    let of_odd#t = reduce(odd.s#t, local, lane);
    if lane == 0u {
        outputs[#tu * PAIRS + pair] = bitcast<vec2<u32>>((of_even#t + of_odd#t) * factor);
    }
}

// What a pair of the item's nth row makes: the bits of two columns, or in the first half of one.
fn made(sums: vec2<u32>, n: u32) -> vec2<u32> {
    let both = bitcast<vec2<f32>>(sums);
    if GATED {
        return vec2(activated(both.x, both.y, weight_of(n)), 0u);
    }
    return vec2(narrow_bf16(both.x), narrow_bf16(both.y));
}

@compute @workgroup_size(LANES * ROWS)
fn grouped_gemv(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    if !take_item(group.z * groups.y + group.y, local) {
        return;
    }
    let lane = local % LANES;
    let subgroup = local / LANES;
    let first = group.x * OUTPUTS;
    for (var base = 0u; base < item.count; base += TOKENS) {
        present = item.count - base;
        var places: Places;
        places.x#t = x_start(min(base + #tu, item.count - 1u)) / 8u;
        for (var i = 0u; i < PER_SUBGROUP; i++) {
            let pair = subgroup * PER_SUBGROUP + i;
            var rows = vec2(weight_row(0u, first + 2u * pair), weight_row(0u, first + 2u * pair + 1u));
            if GATED {
                rows = vec2(weight_row(0u, first + pair), weight_row(1u, first + pair));
            }
            add_up_pair(pair, rows, places, local, lane);
        }
        workgroupBarrier();
        for (var i = local; i < TOKENS * PAIRS; i += LANES * ROWS) {
            if i / PAIRS < present {
                outputs[i] = made(outputs[i], base + i / PAIRS);
            }
        }
        workgroupBarrier();
        for (var i = local; i < TOKENS * OUTPUTS / 2u; i += LANES * ROWS) {
            let row = i / (OUTPUTS / 2u);
            let col = first + i % (OUTPUTS / 2u) * 2u;
            if row < present && is_inside(base + row) && col < call.cols {
                var both = outputs[i];
                if GATED {
                    both = vec2(outputs[2u * i].x, outputs[2u * i + 1u].x);
                }
                store_pair(base + row, col, both);
            }
        }
        workgroupBarrier();
    }
}
