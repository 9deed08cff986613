// The tiles of one weight's matmul, stored.

@compute @workgroup_size(256)
fn matmul_tiles(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first_row = group.x * TILE;
    let first_token = group.y * TILE;
    let at = place_in_tile(local);
    // Four elements of a token and of a row at each step; neighbours bring what lies beside them.
    let place = local / (DEPTH / 4u);
    let token = min(first_token + place, call.tokens - 1u);
    let row = min(first_row + place, call.rows - 1u);
    let own = Own(
        place,
        token,
        row,
        x_start(token),
        row * call.row_vectors,
        local % (DEPTH / 4u) * 4u,
    );
    let sums = multiplied(own, at);
    let t = first_token + 4u * at.y;
    let r = first_row + 4u * at.x;
    store_block(t, r, sums.s00);
    if GROUPS == 2u {
        store_block(t, r + 4u * NEXT.x, sums.s01);
        store_block(t + 4u * NEXT.y, r, sums.s10);
        store_block(t + 4u * NEXT.y, r + 4u * NEXT.x, sums.s11);
    }
}

fn store_block(token: u32, row: u32, sums: mat4x4<f32>) {
    let scaled = sums * call.result_scale;
    store_quad(token, row, scaled[0]);
    store_quad(token + 1u, row, scaled[1]);
    store_quad(token + 2u, row, scaled[2]);
    store_quad(token + 3u, row, scaled[3]);
}
