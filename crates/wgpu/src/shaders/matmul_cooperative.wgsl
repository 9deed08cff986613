// Many tokens by a weight, both in f16, on matrices that a subgroup holds together.
//
// ## Method
// 1. A workgroup of four subgroups makes a tile of 128 tokens and 128 rows, a subgroup a quarter of it
//    in 4 x 4 matrices of 16 x 16.
// 2. 32 columns at a time go through the workgroup's memory; what comes next is loaded meanwhile.
// 3. Sums leave by way of the workgroup's memory, a matrix at a time, where they are rounded.
//
// Everything is in variables of its own: drivers keep arrays in memory. A line with #t is there for
// each of the TILE / BROUGHT vectors that an invocation brings of either side.
//
// k is a multiple of 32, and the weight's rows are that long. There are at least 128 tokens and rows:
// the last tile starts earlier where it would not be full, and makes some outputs a second time.

@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> weights: array<vec4<f16>>;

// The elements of a row where the pipeline is made for that many, and for rows of x that follow one
// another; 0 where the call tells. As a constant it goes into the loads' addresses.
override K: u32;

const TILE: u32 = 128u;
const INVOCATIONS: u32 = 128u;
// Vectors of a row that the workgroup takes at a time, and from one row to the next in its memory:
// two more, so that eight rows lie in different banks.
const DEPTH: u32 = 8u;
const LINE: u32 = DEPTH + 2u;
// Rows that the workgroup's invocations bring at a time.
const BROUGHT: u32 = INVOCATIONS / DEPTH;

var<workgroup> x_tile: array<vec4<f16>, TILE * LINE>;
var<workgroup> w_tile: array<vec4<f16>, TILE * LINE>;
// A matrix of each subgroup on its way out.
var<workgroup> staged: array<f32, 4 * 256>;

alias Sums = coop_mat16x16<f32, C>;

// Sixteen tokens by sixteen rows; y is of f32, or in whole words.
fn put(sums: Sums, token: u32, row: u32, local: u32) {
    let own = local / 32u * 256u;
    workgroupBarrier();
    coopStoreT(sums, &staged[own], 16u);
    workgroupBarrier();
    let i = local % 32u * 8u;
    let to = call.y_offset + (token + i / 16u) * call.y_stride + row + i % 16u;
    for (var j = 0u; j < 8u; j += 2u) {
        let low = narrow_as(call.y_float, staged[own + i + j]);
        let high = narrow_as(call.y_float, staged[own + i + j + 1u]);
        if call.y_float == 0u {
            atomicStore(&y[to + j], low);
            atomicStore(&y[to + j + 1u], high);
        } else {
            atomicStore(&y[(to + j) / 2u], low | (high << 16u));
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn matmul_cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = min(group.xy * TILE, vec2(call.rows, call.tokens) - TILE);
    let quarter = local / 32u;
    let x_line = quarter / 2u * 64u * LINE;
    let w_line = quarter % 2u * 64u * LINE;
    let own = local / DEPTH;
    let own_k = local % DEPTH;
    let bring_to = own * LINE + own_k;
    let vectors = select(call.k, K, K != 0u) / 4u;
    let x_stride = select(call.x_stride, K, K != 0u) / 4u;
    let w_stride = vectors;
    let x_from = call.x_offset / 4u + (first.y + own) * x_stride;
    let w_from = (first.x + own) * w_stride;
    var c00 = Sums();
    var c01 = Sums();
    var c02 = Sums();
    var c03 = Sums();
    var c10 = Sums();
    var c11 = Sums();
    var c12 = Sums();
    var c13 = Sums();
    var c20 = Sums();
    var c21 = Sums();
    var c22 = Sums();
    var c23 = Sums();
    var c30 = Sums();
    var c31 = Sums();
    var c32 = Sums();
    var c33 = Sums();
    var x#t = x[x_from + #tu * BROUGHT * x_stride + own_k];
    var w#t = weights[w_from + #tu * BROUGHT * w_stride + own_k];
    for (var step = 0u; step < vectors; step += DEPTH) {
        workgroupBarrier();
        x_tile[bring_to + #tu * BROUGHT * LINE] = x#t;
        w_tile[bring_to + #tu * BROUGHT * LINE] = w#t;
        workgroupBarrier();
        // After the last step the first vectors are brought again: a branch would cost more.
        let next = select(0u, step + DEPTH, step + DEPTH < vectors) + own_k;
        x#t = x[x_from + #tu * BROUGHT * x_stride + next];
        w#t = weights[w_from + #tu * BROUGHT * w_stride + next];
        {
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_line], LINE);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_line + 16u * LINE], LINE);
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_line + 32u * LINE], LINE);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_line + 48u * LINE], LINE);
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_line], LINE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c30 = coopMultiplyAdd(a3, b0, c30);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_line + 16u * LINE], LINE);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c11 = coopMultiplyAdd(a1, b1, c11);
            c21 = coopMultiplyAdd(a2, b1, c21);
            c31 = coopMultiplyAdd(a3, b1, c31);
            let b2 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_line + 32u * LINE], LINE);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c12 = coopMultiplyAdd(a1, b2, c12);
            c22 = coopMultiplyAdd(a2, b2, c22);
            c32 = coopMultiplyAdd(a3, b2, c32);
            let b3 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_line + 48u * LINE], LINE);
            c03 = coopMultiplyAdd(a0, b3, c03);
            c13 = coopMultiplyAdd(a1, b3, c13);
            c23 = coopMultiplyAdd(a2, b3, c23);
            c33 = coopMultiplyAdd(a3, b3, c33);
        }
        {
            let a0 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_line + 4u], LINE);
            let a1 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_line + 16u * LINE + 4u], LINE);
            let a2 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_line + 32u * LINE + 4u], LINE);
            let a3 = coopLoadT<coop_mat16x16<f16, A>>(&x_tile[x_line + 48u * LINE + 4u], LINE);
            let b0 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_line + 4u], LINE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c20 = coopMultiplyAdd(a2, b0, c20);
            c30 = coopMultiplyAdd(a3, b0, c30);
            let b1 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_line + 16u * LINE + 4u], LINE);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c11 = coopMultiplyAdd(a1, b1, c11);
            c21 = coopMultiplyAdd(a2, b1, c21);
            c31 = coopMultiplyAdd(a3, b1, c31);
            let b2 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_line + 32u * LINE + 4u], LINE);
            c02 = coopMultiplyAdd(a0, b2, c02);
            c12 = coopMultiplyAdd(a1, b2, c12);
            c22 = coopMultiplyAdd(a2, b2, c22);
            c32 = coopMultiplyAdd(a3, b2, c32);
            let b3 = coopLoad<coop_mat16x16<f16, B>>(&w_tile[w_line + 48u * LINE + 4u], LINE);
            c03 = coopMultiplyAdd(a0, b3, c03);
            c13 = coopMultiplyAdd(a1, b3, c13);
            c23 = coopMultiplyAdd(a2, b3, c23);
            c33 = coopMultiplyAdd(a3, b3, c33);
        }
    }
    let token = first.y + quarter / 2u * 64u;
    let row = first.x + quarter % 2u * 64u;
    put(c00, token, row, local);
    put(c01, token, row + 16u, local);
    put(c02, token, row + 32u, local);
    put(c03, token, row + 48u, local);
    put(c10, token + 16u, row, local);
    put(c11, token + 16u, row + 16u, local);
    put(c12, token + 16u, row + 32u, local);
    put(c13, token + 16u, row + 48u, local);
    put(c20, token + 32u, row, local);
    put(c21, token + 32u, row + 16u, local);
    put(c22, token + 32u, row + 32u, local);
    put(c23, token + 32u, row + 48u, local);
    put(c30, token + 48u, row, local);
    put(c31, token + 48u, row + 16u, local);
    put(c32, token + 48u, row + 32u, local);
    put(c33, token + 48u, row + 48u, local);
}
