// Two neighbouring rows at a time.

@compute @workgroup_size(LANES * ROWS)
fn gemv(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local % LANES;
    let subgroup = local / LANES;
    let first = (group.y * groups.x + group.x) * ROWS + subgroup / PARTS * 2u;
    // The reductions need every invocation: those without a row do the last again.
    add_up(min(vec2(first, first + 1u), vec2(call.rows - 1u)), local);
    if subgroup % PARTS == 0u && lane < min(TOKENS, call.tokens) {
        store_two(lane, first, total(subgroup, lane));
    }
}

// A token's outputs of two rows, as far as there are such.
fn store_two(token: u32, row: u32, values: vec2<f32>) {
    let at = call.y_offset + token * call.y_stride + row;
    if call.y_float != 0u && at % 2u == 0u && row + 1u < call.rows {
        let low = narrow_as(call.y_float, values.x);
        atomicStore(&y[at / 2u], low | (narrow_as(call.y_float, values.y) << 16u));
        return;
    }
    if row < call.rows {
        store(token, row, values.x);
    }
    if row + 1u < call.rows {
        store(token, row + 1u, values.y);
    }
}
