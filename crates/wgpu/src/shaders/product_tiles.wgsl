// For many tokens: a workgroup makes a tile of TILE tokens and TILE rows of the weight; 16 x 16
// invocations make 4 x 4 outputs each, or four times that.

const GROUPS: u32 = TILE / 64u;
const TILE_VECTORS: u32 = TILE / 4u;

// [DEPTH][TILE], in vectors along TILE.
var<workgroup> x_tile: array<vec4<f32>, DEPTH * TILE_VECTORS>;
var<workgroup> w_tile: array<vec4<f32>, DEPTH * TILE_VECTORS>;

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
    var sums: array<vec4<f32>, 4u * GROUPS * GROUPS>;
    for (var step = 0u; step < call.k; step += DEPTH) {
        let k = step + own_k;
        let xs = x_quad(token, k);
        var ws = vec4(0.0);
        if k < call.k {
            let vector = weights[row * call.row_vectors + k / (4u * QUADS)];
            ws = weight_quad(vector, (k / 4u) % QUADS) * weight_scale(row, k);
        }
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
            let at = (own_k + i) * TILE_VECTORS + own / 4u;
            x_tile[at][own % 4u] = xs[i];
            w_tile[at][own % 4u] = ws[i];
        }
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i++) {
            var a: array<vec4<f32>, GROUPS>;
            var b: array<vec4<f32>, GROUPS>;
            for (var g = 0u; g < GROUPS; g++) {
                a[g] = x_tile[i * TILE_VECTORS + g * 16u + ty];
                b[g] = w_tile[i * TILE_VECTORS + g * 16u + tx];
            }
            for (var m = 0u; m < GROUPS; m++) {
                for (var j = 0u; j < 4u; j++) {
                    for (var n = 0u; n < GROUPS; n++) {
                        let at = (m * 4u + j) * GROUPS + n;
                        sums[at] = fma(vec4(a[m][j]), b[n], sums[at]);
                    }
                }
            }
        }
    }
    for (var m = 0u; m < GROUPS; m++) {
        for (var j = 0u; j < 4u; j++) {
            for (var n = 0u; n < GROUPS; n++) {
                let t = first_token + (m * 16u + ty) * 4u + j;
                let r = first_row + (n * 16u + tx) * 4u;
                if t < call.tokens {
                    store_quad(t, r, sums[(m * 4u + j) * GROUPS + n]);
                }
            }
        }
    }
}

// Four outputs of a token, as far as there are rows; words that are all its own at once.
fn store_quad(token: u32, row: u32, values: vec4<f32>) {
    let at = call.y_offset + token * call.y_stride + row;
    if call.y_dtype != 0u && at % 2u == 0u && row + 4u <= call.rows {
        for (var i = 0u; i < 2u; i++) {
            let low = narrow_as(call.y_dtype, values[2u * i]);
            let high = narrow_as(call.y_dtype, values[2u * i + 1u]);
            atomicStore(&y[at / 2u + i], low | (high << 16u));
        }
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        if row + i < call.rows {
            store(token, row + i, values[i]);
        }
    }
}
