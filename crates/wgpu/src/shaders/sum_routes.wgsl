// y = the sum of a token's rows, in their order, and what the shared expert gave: an invocation makes two columns.

struct SumCall {
    // Tokens of the window, the first of them among all, and pairs of columns.
    tokens: u32,
    first_token: u32,
    pairs: u32,
    cols: u32,
    top_k: u32,
    // The experts whose rows there are, among all of the layer.
    first_expert: u32,
    end_expert: u32,
    // From row to row of the experts' outputs.
    stride: u32,
    outputs_offset: u32,
    // NONE where there is no shared expert.
    shared_float: u32,
    shared_offset: u32,
    shared_stride: u32,
    y_float: u32,
    y_offset: u32,
    y_stride: u32,
    unused: u32,
    op: Op,
}

const NONE: u32 = 0xffffffffu;

var<immediate> call: SumCall;

@group(0) @binding(0) var<storage, read> outputs: array<u32>;
@group(0) @binding(1) var<storage, read> rows: array<i32>;
@group(0) @binding(2) var<storage, read> offsets: array<i32>;
@group(0) @binding(3) var<storage, read> shared_rows: array<u32>;
// Atomic, because two rows can share a word.
@group(0) @binding(4) var<storage, read_write> y: array<atomic<u32>>;

fn output_at(position: u32) -> f32 {
    return widen_as(2u, (outputs[position >> 1u] >> ((position & 1u) << 4u)) & 0xffffu);
}

fn shared_at(position: u32) -> f32 {
    if call.shared_float == 0u {
        return bitcast<f32>(shared_rows[position]);
    }
    let bits = (shared_rows[position >> 1u] >> ((position & 1u) << 4u)) & 0xffffu;
    return widen_as(call.shared_float, bits);
}

// The rows of four of a token's slots: -1 beyond the last.
fn four_rows(start: u32, slot: u32) -> vec4<i32> {
    let slots = vec4(slot, slot + 1u, slot + 2u, slot + 3u);
    let at = min(slots, vec4(call.top_k - 1u)) + vec4(start);
    let own = vec4(rows[at.x], rows[at.y], rows[at.z], rows[at.w]);
    return select(vec4(-1), own, slots < vec4(call.top_k));
}

// Where outputs of rows lie: NONE where a row is none of these experts'.
fn places_of(own: vec4<i32>, first: i32, end: i32, col: u32) -> vec4<u32> {
    let there = (own >= vec4(first)) & (own < vec4(end));
    let at = vec4(call.outputs_offset + col) + vec4<u32>(own) * call.stride;
    return select(vec4(NONE), at, there);
}

// Outputs so far from their places: 0 where there is none.
fn four_outputs(at: vec4<u32>, after: u32) -> vec4<f32> {
    let place = select(at + vec4(after), vec4(0u), at == vec4(NONE));
    let own = vec4(output_at(place.x), output_at(place.y), output_at(place.z), output_at(place.w));
    return select(own, vec4(0.0), at == vec4(NONE));
}

fn store_half(at: u32, bits: u32) {
    let shift = (at & 1u) << 4u;
    atomicAnd(&y[at >> 1u], ~(0xffffu << shift));
    atomicOr(&y[at >> 1u], bits << shift);
}

@compute @workgroup_size(WORKGROUP)
fn sum_routes(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let unit = unit_index(group, groups, local);
    if unit >= call.tokens * call.pairs {
        return;
    }
    let token = unit / call.pairs;
    let col = unit % call.pairs * 2u;
    let both = col + 1u < call.cols;
    let first = offsets[call.first_expert];
    let end = offsets[call.end_expert];
    var sums = vec2(0.0);
    let rows_from = (call.first_token + token) * call.top_k;
    for (var slot = 0u; slot < call.top_k; slot += 8u) {
        // Loads of eight slots at a time are under way together.
        let low = four_rows(rows_from, slot);
        let high = four_rows(rows_from, slot + 4u);
        let low_at = places_of(low, first, end, col);
        let high_at = places_of(high, first, end, col);
        let a = four_outputs(low_at, 0u);
        let b = four_outputs(high_at, 0u);
        var c = vec4(0.0);
        var d = vec4(0.0);
        if both {
            c = four_outputs(low_at, 1u);
            d = four_outputs(high_at, 1u);
        }
        sums.x = (((sums.x + a.x) + a.y) + a.z) + a.w;
        sums.x = (((sums.x + b.x) + b.y) + b.z) + b.w;
        sums.y = (((sums.y + c.x) + c.y) + c.z) + c.w;
        sums.y = (((sums.y + d.x) + d.y) + d.z) + d.w;
    }
    if call.shared_float != NONE {
        let at = call.shared_offset + token * call.shared_stride + col;
        sums.x += shared_at(at);
        if both {
            sums.y += shared_at(at + 1u);
        }
    }
    let at = call.y_offset + token * call.y_stride + col;
    let low = narrow_as(call.y_float, sums.x);
    let high = narrow_as(call.y_float, sums.y);
    if call.y_float == 0u {
        atomicStore(&y[at], low);
        if both {
            atomicStore(&y[at + 1u], high);
        }
    } else if both && at % 2u == 0u {
        atomicStore(&y[at >> 1u], low | (high << 16u));
    } else {
        store_half(at, low);
        if both {
            store_half(at + 1u, high);
        }
    }
}
