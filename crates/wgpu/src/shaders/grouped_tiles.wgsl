// Many rows of an expert by its weights. In the first half a gate and its up are neighbours in a tile.

// An invocation's four by four sums, one of its own.
var<private> outputs: array<f32, 16>;

@compute @workgroup_size(256)
fn grouped_tiles(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    if !take_item(group.z * groups.y + group.y, local) {
        return;
    }
    let first = group.x * OUTPUTS;
    let at = place_in_tile(local);
    let place = local / (DEPTH / 4u);
    let token = min(place, item.count - 1u);
    var row = weight_row(0u, first + place);
    if GATED {
        row = weight_row(place % 2u, first + place / 2u);
    }
    let own = Own(
        place,
        token,
        row,
        x_start(token),
        row * call.row_vectors,
        local % (DEPTH / 4u) * 4u,
    );
    let sums = multiplied(own, at);
    let scaled = sums.s00 * call.result_scale;
    outputs = array(
        scaled[0].x, scaled[0].y, scaled[0].z, scaled[0].w,
        scaled[1].x, scaled[1].y, scaled[1].z, scaled[1].w,
        scaled[2].x, scaled[2].y, scaled[2].z, scaled[2].w,
        scaled[3].x, scaled[3].y, scaled[3].z, scaled[3].w,
    );
    // One by one: drivers would compile many copies of the activation.
    for (var i = 0u; i < 4u; i++) {
        let n = 4u * at.y + i;
        if is_inside(n) {
            if GATED {
                store_outputs(n, 4u * i, first + 2u * at.x, 0u);
            } else {
                store_outputs(n, 4u * i, first + 4u * at.x, 0u);
                store_outputs(n, 4u * i, first + 4u * at.x, 1u);
            }
        }
    }
}
