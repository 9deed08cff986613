// For many tokens: a workgroup makes a tile of TILE tokens and TILE rows of the weight; 16 x 16
// invocations make 4 x 4 outputs each, or four times that. Everything is in variables of its own:
// drivers keep arrays in memory.

const GROUPS: u32 = TILE / 64u;
const TILE_VECTORS: u32 = TILE / 4u;

// [DEPTH][TILE], in vectors along TILE.
var<workgroup> x_tile: array<vec4<f32>, DEPTH * TILE_VECTORS>;
var<workgroup> w_tile: array<vec4<f32>, DEPTH * TILE_VECTORS>;

// Adds a column times a row.
fn with_outer(sum: mat4x4<f32>, a: vec4<f32>, b: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(
        fma(vec4(a.x), b, sum[0]),
        fma(vec4(a.y), b, sum[1]),
        fma(vec4(a.z), b, sum[2]),
        fma(vec4(a.w), b, sum[3]),
    );
}

fn bring(own: u32, own_k: u32, xs: vec4<f32>, ws: vec4<f32>) {
    let at = own_k * TILE_VECTORS + own / 4u;
    let lane = own % 4u;
    x_tile[at][lane] = xs.x;
    x_tile[at + TILE_VECTORS][lane] = xs.y;
    x_tile[at + 2u * TILE_VECTORS][lane] = xs.z;
    x_tile[at + 3u * TILE_VECTORS][lane] = xs.w;
    w_tile[at][lane] = ws.x;
    w_tile[at + TILE_VECTORS][lane] = ws.y;
    w_tile[at + 2u * TILE_VECTORS][lane] = ws.z;
    w_tile[at + 3u * TILE_VECTORS][lane] = ws.w;
}

@compute @workgroup_size(256)
fn product_tiles(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first_row = group.x * TILE;
    let first_token = group.y * TILE;
    let tx = local % 16u;
    let ty = local / 16u;
    // What this invocation brings: four elements of a token and of a row at each step.
    let own = local % TILE;
    let own_k = local / TILE * 4u;
    let token = min(first_token + own, call.tokens - 1u);
    let row = min(first_row + own, call.rows - 1u);
    var s00: mat4x4<f32>;
    var s01: mat4x4<f32>;
    var s10: mat4x4<f32>;
    var s11: mat4x4<f32>;
    for (var step = 0u; step < call.k; step += DEPTH) {
        let k = step + own_k;
        var xs = vec4(0.0);
        var ws = vec4(0.0);
        if k < call.k {
            xs = x_quad(token, k);
            let vector = weights[row * call.row_vectors + k / (4u * QUADS)];
            ws = weight_quad(vector, (k / 4u) % QUADS) * weight_scale(row, k);
        }
        workgroupBarrier();
        bring(own, own_k, xs, ws);
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i++) {
            let a = x_tile[i * TILE_VECTORS + ty];
            let b = w_tile[i * TILE_VECTORS + tx];
            s00 = with_outer(s00, a, b);
            if GROUPS == 2u {
                let a1 = x_tile[i * TILE_VECTORS + 16u + ty];
                let b1 = w_tile[i * TILE_VECTORS + 16u + tx];
                s01 = with_outer(s01, a, b1);
                s10 = with_outer(s10, a1, b);
                s11 = with_outer(s11, a1, b1);
            }
        }
    }
    let t = first_token + 4u * ty;
    let r = first_row + 4u * tx;
    store_block(t, r, s00);
    if GROUPS == 2u {
        store_block(t, r + 64u, s01);
        store_block(t + 64u, r, s10);
        store_block(t + 64u, r + 64u, s11);
    }
}

fn store_block(token: u32, row: u32, sums: mat4x4<f32>) {
    store_quad(token, row, sums[0]);
    store_quad(token + 1u, row, sums[1]);
    store_quad(token + 2u, row, sums[2]);
    store_quad(token + 3u, row, sums[3]);
}

// Four outputs of a token, as far as there are rows; words that are all its own at once.
fn store_quad(token: u32, row: u32, values: vec4<f32>) {
    if token >= call.tokens {
        return;
    }
    let at = call.y_offset + token * call.y_stride + row;
    if call.y_dtype != 0u && at % 2u == 0u && row + 4u <= call.rows {
        let a = narrow_as(call.y_dtype, values.x) | (narrow_as(call.y_dtype, values.y) << 16u);
        let b = narrow_as(call.y_dtype, values.z) | (narrow_as(call.y_dtype, values.w) << 16u);
        atomicStore(&y[at / 2u], a);
        atomicStore(&y[at / 2u + 1u], b);
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if row + i < call.rows {
            store(token, row + i, values[i]);
        }
    }
}
