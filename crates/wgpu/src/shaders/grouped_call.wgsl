// Matmuls of the experts of one buffer, each with rows of its own. A buffer holds the parts of one expert after
// another: gate and up, or down.

struct GroupedCall {
    x_float: u32,
    x_offset: u32,
    x_stride: u32,
    // The window of x: its first row, and how many there are.
    x_first: u32,
    x_rows: u32,
    // Elements in a row, and vectors of 16 bytes in one of the weight.
    k: u32,
    row_vectors: u32,
    // Where scales lie in a part, as in a matmul's call; on cooperative matrices `block_cols` is the greatest byte of
    // FP4's scales, and where rows are found by their routes both are otherwise used.
    block_rows: u32,
    block_cols: u32,
    scale_cols: u32,
    scale_shift: u32,
    result_scale: f32,
    // Rows of a part, and rows of its scales.
    part_rows: u32,
    part_scale_rows: u32,
    // The buffer's experts, counted from the first that is loaded.
    first_expert: u32,
    end_expert: u32,
    // Routes of a token.
    top_k: u32,
    // The window of y: its first row, and how many there are.
    first_row: u32,
    rows: u32,
    y_offset: u32,
    y_stride: u32,
    // The first column that is made, and how many are.
    first_col: u32,
    cols: u32,
    // Where the list of items begins; where rows are found by their routes, the first expert that is loaded.
    items: u32,
    op: Op,
}

var<immediate> call: GroupedCall;

@group(0) @binding(4) var<storage, read> sorted: array<i32>;
@group(0) @binding(5) var<storage, read> route_weights: array<f32>;
// Atomic, because two outputs share a word.
@group(0) @binding(6) var<storage, read_write> y: array<atomic<u32>>;

// Some rows of one expert: the expert, counted from the first that is loaded, the first row, and how many.
struct Item {
    expert: u32,
    row: u32,
    count: u32,
}

var<private> item: Item;
fn tokens() -> u32 {
    return item.count;
}

// The route of the item's nth row.
fn route_of(n: u32) -> u32 {
    return u32(sorted[min(item.row + n, arrayLength(&sorted) - 1u)]);
}

// Where what the item's nth row is made from begins, in elements of x. Of rows outside of the window something is
// read, and what is made of it is not stored.
fn x_start(n: u32) -> u32 {
    var source = item.row + n;
    if GATED {
        source = route_of(n) / call.top_k;
    }
    let at = min(max(source, call.x_first) - call.x_first, call.x_rows - 1u);
    return call.x_offset + at * call.x_stride;
}

// Whether x and y have the item's nth row in their windows.
fn is_inside(n: u32) -> bool {
    if n >= item.count || item.row + n - call.first_row >= call.rows {
        return false;
    }
    var source = item.row + n;
    if GATED {
        source = route_of(n) / call.top_k;
    }
    return source - call.x_first < call.x_rows;
}

// Where a row's scales begin.
fn scale_start(row: u32) -> u32 {
    let part = row / call.part_rows;
    let within = row % call.part_rows;
    return (part * call.part_scale_rows + within / call.block_rows) * call.scale_cols;
}

// The buffer's row that makes a column of an item's outputs, in one of the expert's parts.
fn weight_row(part: u32, col: u32) -> u32 {
    let expert = item.expert - call.first_expert;
    let of_part = expert * select(1u, 2u, GATED) + part;
    return of_part * call.part_rows + call.first_col + min(col, call.cols - 1u);
}

// Two neighbouring columns of the item's nth row, the first an even one, in bf16.
fn store_pair(n: u32, col: u32, pair: vec2<u32>) {
    let at = call.y_offset + (item.row + n - call.first_row) * call.y_stride + col;
    if at % 2u == 0u && col + 1u < call.cols {
        atomicStore(&y[at / 2u], pair.x | (pair.y << 16u));
        return;
    }
    for (var i = 0u; i < 2u; i++) {
        if col + i < call.cols {
            let shift = ((at + i) & 1u) << 4u;
            atomicAnd(&y[(at + i) / 2u], ~(0xffffu << shift));
            atomicOr(&y[(at + i) / 2u], pair[i] << shift);
        }
    }
}
