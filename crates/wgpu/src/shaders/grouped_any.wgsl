// Up to four rows of an expert, of any type and place, by its weights.

// By row of the item and output.
var<workgroup> outputs: array<f32, 4u * ROWS>;

@compute @workgroup_size(LANES * ROWS)
fn grouped_any(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    if !take_item(group.z * groups.y + group.y, local) {
        return;
    }
    let lane = local % LANES;
    let own = local / LANES;
    let first = group.x * OUTPUTS;
    var row = weight_row(0u, first + own);
    if GATED {
        row = weight_row(own % 2u, first + own / 2u);
    }
    let start = row * call.row_vectors;
    var sums = vec4(0.0);
    for (var v = lane; v < call.row_vectors; v += LANES) {
        sums += terms(weights[start + v], row, v);
    }
    let low = reduce(sums.xy, local, lane);
    let high = reduce(sums.zw, local, lane);
    let all = vec4(low, high);
    if lane < 4u {
        outputs[lane * ROWS + own] = all[lane] * call.result_scale;
    }
    workgroupBarrier();
    let n = local / (OUTPUTS / 2u);
    let pair = local % (OUTPUTS / 2u);
    if n >= 4u || !is_inside(n) {
        return;
    }
    store_outputs(n, n * ROWS, first, pair);
}
