// For many tokens: a workgroup makes a tile of TILE tokens and TILE rows of the weight; 16 x 16
// invocations make 4 x 4 outputs each, or four times that. Everything is in variables of its own:
// drivers keep arrays in memory. Where WHOLE, k is a multiple of DEPTH, and nothing is compared with it.

const GROUPS: u32 = TILE / 64u;
const TILE_VECTORS: u32 = TILE / 4u;

// [BUFFERS][DEPTH][TILE], in vectors along TILE. With two buffers one is filled while the other is
// being multiplied.
const BUFFER: u32 = DEPTH * TILE_VECTORS;
var<workgroup> x_tile: array<vec4<f32>, BUFFERS * BUFFER>;
var<workgroup> w_tile: array<vec4<f32>, BUFFERS * BUFFER>;

// Adds a column times a row.
fn with_outer(sum: mat4x4<f32>, a: vec4<f32>, b: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(
        fma(vec4(a.x), b, sum[0]),
        fma(vec4(a.y), b, sum[1]),
        fma(vec4(a.z), b, sum[2]),
        fma(vec4(a.w), b, sum[3]),
    );
}

// From the first four outputs of an invocation to its second.
const NEXT: vec2<u32> = vec2(8u, 4u);

// Where an invocation's outputs start in the tile, in fours of rows and of tokens. In a large tile
// 32 neighbours make a block of 16 by 8, so that they read few vectors from the workgroup's memory.
fn place_in_tile(local: u32) -> vec2<u32> {
    if GROUPS == 1u {
        return vec2(local % 16u, local / 16u);
    }
    let block = local / 32u;
    return vec2(local % 8u + block % 2u * 16u, local % 32u / 8u + block / 2u * 8u);
}

fn bring(buffer: u32, own: u32, own_k: u32, inside: bool, xk: vec4<f32>, wk: vec4<f32>) {
    let xs = select(vec4(0.0), xk, WHOLE || inside);
    let ws = select(vec4(0.0), wk, WHOLE || inside);
    let at = buffer + own_k * TILE_VECTORS + own / 4u;
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

// What an invocation brings next, as it lies in memory: to decode it at once would be to wait for it.
struct Raw {
    x: vec4<u32>,
    w: vec4<u32>,
    scale: f32,
}

// What an invocation brings elements of: a token and a row of the weight, and where they start.
struct Own {
    token: u32,
    row: u32,
    x_start: u32,
    w_start: u32,
}

fn fetch(own: Own, k: u32) -> Raw {
    // Beyond the end something is read, and made 0 later or never used.
    let at = select(0u, k, k < call.k);
    var raw: Raw;
    if !ALIGNED {
        raw.x = bitcast<vec4<u32>>(x_quad(own.token, at));
    } else if x_dtype() == 0u {
        raw.x = x[(own.x_start + at) >> 2u];
    } else {
        raw.x = x[(own.x_start + at) >> 3u];
    }
    raw.w = weights[own.w_start + at / (4u * QUADS)];
    raw.scale = weight_scale(own.row, at);
    return raw;
}

fn x_of(raw: Raw, k: u32) -> vec4<f32> {
    if !ALIGNED || x_dtype() == 0u {
        return bitcast<vec4<f32>>(raw.x);
    }
    return widen_four(x_dtype(), select(raw.x.xy, raw.x.zw, (k & 4u) != 0u));
}

fn w_of(raw: Raw, k: u32) -> vec4<f32> {
    let quad = weight_quad(raw.w, (k / 4u) % QUADS);
    if WEIGHT != 3u {
        return quad;
    }
    return quad * raw.scale;
}

@compute @workgroup_size(256)
fn product_tiles(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first_row = group.x * TILE;
    let first_token = group.y * TILE;
    let at = place_in_tile(local);
    // What this invocation brings: four elements of a token and of a row at each step.
    let own = local % TILE;
    let own_k = local / TILE * 4u;
    let token = min(first_token + own, call.tokens - 1u);
    let row = min(first_row + own, call.rows - 1u);
    let brings = Own(
        token,
        row,
        call.x_offset + token * call.x_stride,
        row * call.row_vectors,
    );
    var s00: mat4x4<f32>;
    var s01: mat4x4<f32>;
    var s10: mat4x4<f32>;
    var s11: mat4x4<f32>;
    var buffer = 0u;
    let first_raw = fetch(brings, own_k);
    bring(buffer, own, own_k, own_k < call.k, x_of(first_raw, own_k), w_of(first_raw, own_k));
    workgroupBarrier();
    for (var step = 0u; step < call.k; step += DEPTH) {
        let k = step + DEPTH + own_k;
        let raw = fetch(brings, k);
        for (var i = 0u; i < DEPTH; i++) {
            let line = buffer + i * TILE_VECTORS;
            let a = x_tile[line + at.y];
            let b = w_tile[line + at.x];
            s00 = with_outer(s00, a, b);
            if GROUPS == 2u {
                let a1 = x_tile[line + at.y + NEXT.y];
                let b1 = w_tile[line + at.x + NEXT.x];
                s01 = with_outer(s01, a, b1);
                s10 = with_outer(s10, a1, b);
                s11 = with_outer(s11, a1, b1);
            }
        }
        if BUFFERS == 1u {
            workgroupBarrier();
        } else {
            buffer = BUFFER - buffer;
        }
        bring(buffer, own, own_k, k < call.k, x_of(raw, k), w_of(raw, k));
        workgroupBarrier();
    }
    let t = first_token + 4u * at.y;
    let r = first_row + 4u * at.x;
    store_block(t, r, s00);
    if GROUPS == 2u {
        store_block(t, r + 4u * NEXT.x, s01);
        store_block(t + 4u * NEXT.y, r, s10);
        store_block(t + 4u * NEXT.y, r + 4u * NEXT.x, s11);
    }
}

fn store_block(token: u32, row: u32, sums: mat4x4<f32>) {
    store_quad(token, row, sums[0]);
    store_quad(token + 1u, row, sums[1]);
    store_quad(token + 2u, row, sums[2]);
    store_quad(token + 3u, row, sums[3]);
}
