// Routes sorted by expert, and among equals by number: a workgroup for each expert, and one for what is of none.
//
// ## Method
// 1. Each invocation takes a run of successive routes, and counts those of the workgroup's expert and those of
//    lower ones. Sums over the invocations before give where the expert's rows begin, and the run's first.
// 2. It goes through its run again and gives each route its row. Which of its token's rows that is, the token's
//    other experts tell: rows are in the order of experts, and slots.
//
// Nothing is added by atomics, and what is written follows from the ids alone.

struct SortCall {
    // Routes (T * k).
    routes: u32,
    experts: u32,
    top_k: u32,
    unused: u32,
}

var<immediate> call: SortCall;

@group(0) @binding(0) var<storage, read> ids: array<i32>;
@group(0) @binding(1) var<storage, read_write> offsets: array<i32>;
@group(0) @binding(2) var<storage, read_write> sorted: array<i32>;
@group(0) @binding(3) var<storage, read_write> rows: array<i32>;

// Routes of lower experts and of this one, in the runs up to an invocation's.
var<workgroup> counts: array<vec2<u32>, WORKGROUP>;

// The expert of a route as a number that is at least `experts` where there is none.
fn expert_of(route: u32) -> u32 {
    return u32(ids[route]);
}

// How many of its token's routes come before a route to this expert.
fn rank(route: u32, expert: u32) -> u32 {
    let first = route / call.top_k * call.top_k;
    var before = 0u;
    for (var other = first; other < first + call.top_k; other++) {
        let e = expert_of(other);
        before += u32(e < expert || (e == expert && other < route));
    }
    return before;
}

@compute @workgroup_size(WORKGROUP)
fn sort_routes(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    // The last one is no expert's.
    let expert = group.y * groups.x + group.x;
    if expert > call.experts {
        return;
    }
    let run = (call.routes + WORKGROUP - 1u) / WORKGROUP;
    let begin = min(local * run, call.routes);
    let end = min(begin + run, call.routes);
    var own = vec2(0u);
    for (var route = begin; route < end; route++) {
        let e = expert_of(route);
        own += vec2(u32(e < expert), u32(e == expert && e < call.experts));
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
    let lower = counts[WORKGROUP - 1u].x;
    if local == 0u {
        offsets[expert] = i32(lower);
    }
    if expert < call.experts {
        var row = lower + counts[local].y - own.y;
        for (var route = begin; route < end; route++) {
            if expert_of(route) == expert {
                sorted[row] = i32(route);
                rows[route / call.top_k * call.top_k + rank(route, expert)] = i32(row);
                row++;
            }
        }
        return;
    }
    // What has no row, behind the last; and places behind the last of a token's rows.
    for (var route = begin; route < end; route++) {
        if route >= lower {
            sorted[route] = -1;
        }
        let first = route / call.top_k * call.top_k;
        if route - first >= rank(first, call.experts) {
            rows[route] = -1;
        }
    }
}
