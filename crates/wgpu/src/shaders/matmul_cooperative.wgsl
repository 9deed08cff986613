// Tokens by a weight on matrices that a subgroup holds together: f16 by f16 with sums in f32.
//
// ## Method
// 1. A workgroup makes a tile of TILE_TOKENS by TILE_ROWS. Its subgroups share the tile, ACROSS of them
//    along the rows, and SLICES of them the columns of a step.
// 2. DEPTH columns at a time go through the workgroup's memory, where the weight's become f16s; what
//    comes in the next STAGES steps is being loaded meanwhile.
// 3. Sums leave by way of the workgroup's memory, a matrix of each subgroup at a time: those of the slices
//    meet there, and are multiplied by the powers of two that x and the weight were divided by.
//
// Everything is in variables of its own: drivers keep arrays in memory. A line with a mark and x, w, i or j
// is there for each vector that an invocation brings of x and of the weight, and for each matrix of tokens and
// of rows that a subgroup holds; lines between marks for each of STAGES. Other marks stand for files of their name, and
// for what depends on the tile.
//
// k is a multiple of 32, and the weight's rows are that long. In tiles that are FULL there are at least as
// many tokens and rows: the last one starts earlier, and makes some outputs a second time.

@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> weights: array<Raw>;
// Of e4m3: scales as they are, and as `call.factors` has them; then the exponents of rows.
@group(0) @binding(2) var<storage, read> scales: array<f32>;

// The elements of a row where the pipeline is made for that many, and for rows of x that follow one
// another; 0 where the call tells. As a constant it goes into the loads' addresses.
override K: u32;

var<workgroup> row_exponents: array<i32, TILE_ROWS>;

// The logarithm of what sums with a row are multiplied by.
fn row_exponent(row: u32) -> i32 {
    return bitcast<i32>(scales[call.exponents + (row + call.scale_skip) / call.block_rows]);
}

// The nth from one on, of so many.
fn place(first: u32, n: u32, count: u32) -> u32 {
    if FULL {
        return first + n;
    }
    return min(first + n, count - 1u);
}

// A matrix of each subgroup; the first is of these tokens and rows. y is of f32, or in whole words.
fn put(sums: Sums, first: vec2<u32>, at: vec2<u32>, local: u32) {
    workgroupBarrier();
    stage(sums, local / 32u * 256u);
    workgroupBarrier();
    for (var pair = local; pair < PARTS * 128u; pair += INVOCATIONS) {
        let part = pair / 128u;
        let own = at + vec2(part % ACROSS * MATRICES_ACROSS, part / ACROSS * MATRICES_DOWN) * 16u
            + vec2(pair % 8u * 2u, pair / 8u % 16u);
        var both = vec2(0.0);
        for (var slice = 0u; slice < SLICES; slice++) {
            let start = (slice * PARTS * 128u + pair) * 2u;
            both += vec2(staged[start], staged[start + 1u]);
        }
        if SCALED {
            let exponent = token_exponents[own.y];
            both.x = scale(both.x, exponent + row_exponents[own.x]);
            both.y = scale(both.y, exponent + row_exponents[own.x + 1u]);
        }
        let row = first.x + own.x;
        let token = first.y + own.y;
        if !FULL && (token >= call.tokens || row >= call.rows) {
            continue;
        }
        let to = call.y_offset + token * call.y_stride + row;
        let low = narrow_as(call.y_float, both.x);
        let high = narrow_as(call.y_float, both.y);
        if call.y_float == 0u {
            atomicStore(&y[to], low);
            atomicStore(&y[to + 1u], high);
        } else {
            atomicStore(&y[to / 2u], low | (high << 16u));
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn matmul_cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    enter(local);
    let tile = vec2(TILE_ROWS, TILE_TOKENS);
    var first = group.xy * tile;
    if FULL {
        first = min(first, vec2(call.rows, call.tokens) - tile);
    }
    let k = select(call.k, K, K != 0u);
    // Rows of x that were made for this end with their exponent.
    let x_stride = select(call.x_stride, K + select(0u, 8u, SCALED), K != 0u) / 4u;
    let x_start = call.x_offset / 4u;
    let w_stride = k / RAW;
    if SCALED {
        for (var i = local; i < TILE_TOKENS; i += INVOCATIONS) {
            let exponent = x[x_start + place(first.y, i, call.tokens) * x_stride + k / 4u].x;
            token_exponents[i] = i32(exponent);
        }
        for (var i = local; i < TILE_ROWS; i += INVOCATIONS) {
            row_exponents[i] = row_exponent(place(first.x, i, call.rows));
        }
    }
#places
    let x_from#x = x_start + place(first.y, x_own + #xu * X_LINES, call.tokens) * x_stride;
    let w_row#w = place(first.x, w_own + #wu * W_LINES, call.rows);
    let w_from#w = w_row#w * w_stride;
    let key#w = row_key(w_row#w);
#steps
#put
}
