// What the workgroups of a grouped matmul do: lists of items, each some rows of one expert. Those of experts with few
// rows are for a GEMV, those of others for tiles. One workgroup makes both lists.

struct ScheduleCall {
    // The experts' first among all of the layer, and how many there are.
    first: u32,
    experts: u32,
    // Up to so many rows of an expert are few; these go in items of `height` rows, others of `tile`.
    few: u32,
    height: u32,
    tile: u32,
    // Where either list begins.
    few_items: u32,
    tile_items: u32,
    unused: u32,
}

var<immediate> call: ScheduleCall;

@group(0) @binding(0) var<storage, read> offsets: array<i32>;
// For each expert how many items there are before its own, of few rows and of tiles; then all items.
@group(0) @binding(1) var<storage, read_write> schedule: array<vec4<u32>>;

var<workgroup> counts: array<vec2<u32>, WORKGROUP>;

// The expert's first row, and how many it has.
fn rows_of(expert: u32) -> vec2<u32> {
    let first = offsets[call.first + expert];
    return vec2(u32(first), u32(max(offsets[call.first + expert + 1u] - first, 0)));
}

fn items_of(rows: u32) -> vec2<u32> {
    if rows <= call.few {
        return vec2((rows + call.height - 1u) / call.height, 0u);
    }
    return vec2(0u, (rows + call.tile - 1u) / call.tile);
}

@compute @workgroup_size(WORKGROUP)
fn schedule_rows(@builtin(local_invocation_index) local: u32) {
    let run = (call.experts + WORKGROUP - 1u) / WORKGROUP;
    let begin = min(local * run, call.experts);
    let end = min(begin + run, call.experts);
    var own = vec2(0u);
    for (var expert = begin; expert < end; expert++) {
        own += items_of(rows_of(expert).y);
    }
    counts[local] = own;
    workgroupBarrier();
    for (var step = 1u; step < WORKGROUP; step *= 2u) {
        var before = vec2(0u);
        if local >= step {
            before = counts[local - step];
        }
        workgroupBarrier();
        counts[local] += before;
        workgroupBarrier();
    }
    var at = counts[local] - own;
    for (var expert = begin; expert < end; expert++) {
        schedule[expert] = vec4(at, 0u, 0u);
        let rows = rows_of(expert);
        let items = items_of(rows.y);
        for (var i = 0u; i < items.x; i++) {
            let done = i * call.height;
            let count = min(rows.y - done, call.height);
            schedule[call.few_items + at.x + i] = vec4(expert, rows.x + done, count, 0u);
        }
        for (var i = 0u; i < items.y; i++) {
            let done = i * call.tile;
            let count = min(rows.y - done, call.tile);
            schedule[call.tile_items + at.y + i] = vec4(expert, rows.x + done, count, 0u);
        }
        at += items;
    }
    if local == WORKGROUP - 1u {
        schedule[call.experts] = vec4(counts[local], 0u, 0u);
    }
}
