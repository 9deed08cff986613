// Few rows of an expert by its weights.

// By row of the item and output.
var<workgroup> outputs: array<f32, TOKENS * ROWS>;

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
    let of_pair = subgroup / PARTS;
    var rows = vec2(weight_row(0u, first + 2u * of_pair), weight_row(0u, first + 2u * of_pair + 1u));
    if GATED {
        rows = vec2(weight_row(0u, first + of_pair), weight_row(1u, first + of_pair));
    }
    add_up(rows, local);
    if subgroup % PARTS == 0u && lane < TOKENS {
        let sums = total(subgroup, lane);
        outputs[lane * ROWS + 2u * of_pair] = sums.x;
        outputs[lane * ROWS + 2u * of_pair + 1u] = sums.y;
    }
    workgroupBarrier();
    let row = local / (OUTPUTS / 2u);
    let pair = local % (OUTPUTS / 2u);
    if row >= TOKENS || !is_inside(row) {
        return;
    }
    store_outputs(row, row * ROWS, first, pair);
}
