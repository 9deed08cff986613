// Tiles of x and of the weight in the workgroup's memory, which kernels on cooperative matrices fill step by step.

// Vectors of four in a line of a tile: two more than a step has, so that eight lines lie in different banks.
const LINE: u32 = DEPTH / 4u + 2u;
// Subgroups that share a slice.
const PARTS: u32 = INVOCATIONS / 32u / SLICES;
// Vectors of a step, and lines that the workgroup's invocations bring at a time.
const X_VECTORS: u32 = DEPTH / 4u;
const X_LINES: u32 = INVOCATIONS / X_VECTORS;
const W_VECTORS: u32 = DEPTH / RAW;
const W_LINES: u32 = INVOCATIONS / W_VECTORS;

var<workgroup> x_tile: array<vec4<f16>, TILE_TOKENS * LINE>;
var<workgroup> w_tile: array<vec4<f16>, TILE_ROWS * LINE>;
// A matrix of each subgroup on its way out.
var<workgroup> staged: array<f32, INVOCATIONS * 8u>;
var<workgroup> token_exponents: array<i32, TILE_TOKENS>;

// A vector's place in a row of so many, or the first beyond it.
fn column(v: u32, count: u32) -> u32 {
    return select(0u, v, v < count);
}
