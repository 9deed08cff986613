// Many tokens by a weight.
//
// ## Method
// 1. A workgroup makes a tile of TILE tokens and TILE rows of the weight; 16 x 16 invocations make
//    4 x 4 outputs each, or four times that.
// 2. DEPTH columns at a time go through the workgroup's memory, decoded and transposed; with two
//    buffers one is filled while the other is multiplied.
// 3. What comes next is fetched before the multiplication, and decoded after it.
//
// Everything is in variables of its own: drivers keep arrays in memory.

const GROUPS: u32 = TILE / 64u;
// Whether k is a multiple of DEPTH, as it is where large tiles are chosen: then nothing is compared with it.
const WHOLE: bool = GROUPS > 1u;
// Vectors in a line, one of them unused: neighbours that store the same four columns four lines apart
// shall not meet in a bank.
const PITCH: u32 = TILE / 4u + 1u;

// [DEPTH / 4][4][TILE], in vectors along TILE. Arrays in arrays, so that an index is compared with its
// bound once and not for every vector read: what is constant needs no comparing.
alias Tile = array<array<array<vec4<f32>, PITCH>, 4>, DEPTH / 4u>;
// With two buffers one is filled while the other is being multiplied.
var<workgroup> x_tile: array<Tile, BUFFERS>;
var<workgroup> w_tile: array<Tile, BUFFERS>;

// Of four or sixteen blocks of outputs.
struct Sums {
    s00: mat4x4<f32>,
    s01: mat4x4<f32>,
    s10: mat4x4<f32>,
    s11: mat4x4<f32>,
}

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
// Hardware takes the vectors of 16 invocations at once, not of 8, where either every two neighbours or
// every two that are two apart read the same: so the lowest bit is of the tokens, and the next are of rows.
fn place_in_tile(local: u32) -> vec2<u32> {
    if GROUPS == 1u {
        return vec2(local % 16u, local / 16u);
    }
    let block = local / 32u;
    let lane = local % 32u;
    let row = lane / 2u % 8u + block % 2u * 16u;
    return vec2(row, lane % 2u + lane / 16u * 2u + block / 2u * 8u);
}

// What an invocation brings elements of: its place among the tokens and rows of the tile, the token and
// the row of the weight, where they start, and the first column of a step.
struct Own {
    place: u32,
    token: u32,
    row: u32,
    x_start: u32,
    w_start: u32,
    k: u32,
}

// What an invocation brings next, as it lies in memory: to decode it at once would be to wait for it.
struct Raw {
    x: vec4<u32>,
    w: vec4<u32>,
    scale: vec2<f32>,
}

fn fetch(own: Own, k: u32) -> Raw {
    // Beyond the end something is read, and made 0 later or never used.
    let at = select(0u, k, k < call.k);
    var raw: Raw;
    if !ALIGNED {
        raw.x = bitcast<vec4<u32>>(x_quad(own.token, at));
    } else if x_float() == 0u {
        raw.x = x[(own.x_start + at) >> 2u];
    } else {
        raw.x = x[(own.x_start + at) >> 3u];
    }
    raw.w = weights[own.w_start + at / (4u * QUADS)];
    raw.scale = weight_scale(own.row, at);
    return raw;
}

fn x_of(raw: Raw, k: u32) -> vec4<f32> {
    if !ALIGNED || x_float() == 0u {
        return bitcast<vec4<f32>>(raw.x);
    }
    return widen_four(x_float(), select(raw.x.xy, raw.x.zw, (k & 4u) != 0u));
}

fn w_of(raw: Raw, k: u32) -> vec4<f32> {
    return scaled(weight_quad(raw.w, (k / 4u) % QUADS), raw.scale);
}

fn bring(buffer: u32, own: Own, raw: Raw, k: u32) {
    let inside = WHOLE || k < call.k;
    let xs = select(vec4(0.0), x_of(raw, k), inside);
    let ws = select(vec4(0.0), w_of(raw, k), inside);
    let quad = own.k / 4u;
    let at = own.place / 4u;
    let lane = own.place % 4u;
    x_tile[buffer][quad][0][at][lane] = xs.x;
    x_tile[buffer][quad][1][at][lane] = xs.y;
    x_tile[buffer][quad][2][at][lane] = xs.z;
    x_tile[buffer][quad][3][at][lane] = xs.w;
    w_tile[buffer][quad][0][at][lane] = ws.x;
    w_tile[buffer][quad][1][at][lane] = ws.y;
    w_tile[buffer][quad][2][at][lane] = ws.z;
    w_tile[buffer][quad][3][at][lane] = ws.w;
}

// Multiplies what is in a buffer, and fills the other with the step that begins at column `next`. Every
// invocation of the workgroup must call it.
fn advanced(sums: Sums, own: Own, at: vec2<u32>, buffer: u32, next: u32) -> Sums {
    var grown = sums;
    let k = next + own.k;
    let raw = fetch(own, k);
    for (var i = 0u; i < DEPTH; i++) {
        let quad = i / 4u;
        let line = i % 4u;
        let a = x_tile[buffer][quad][line][at.y];
        let b = w_tile[buffer][quad][line][at.x];
        grown.s00 = with_outer(grown.s00, a, b);
        if GROUPS == 2u {
            let a1 = x_tile[buffer][quad][line][at.y + NEXT.y];
            let b1 = w_tile[buffer][quad][line][at.x + NEXT.x];
            grown.s01 = with_outer(grown.s01, a, b1);
            grown.s10 = with_outer(grown.s10, a1, b);
            grown.s11 = with_outer(grown.s11, a1, b1);
        }
    }
    if BUFFERS == 1u {
        workgroupBarrier();
    }
    bring(BUFFERS - 1u - buffer, own, raw, k);
    workgroupBarrier();
    return grown;
}

// All steps of a tile: what an invocation brings, and its place in the tile. Every invocation of the
// workgroup must call it.
fn multiplied(own: Own, at: vec2<u32>) -> Sums {
    var sums: Sums;
    bring(0u, own, fetch(own, own.k), own.k);
    workgroupBarrier();
    // Two steps in turn, so that the buffers are constants.
    for (var step = 0u; step < call.k; step += 2u * DEPTH) {
        sums = advanced(sums, own, at, 0u, step + DEPTH);
        if step + DEPTH >= call.k {
            break;
        }
        sums = advanced(sums, own, at, BUFFERS - 1u, step + 2u * DEPTH);
    }
    return sums;
}
