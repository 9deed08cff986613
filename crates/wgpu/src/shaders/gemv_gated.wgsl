// The gated half of the MLP: the row of a gate and that of its up at a time, and then the activation
// of both, rounded to 16 bits as if they had been stored. A workgroup makes one vector of the
// output for each token, because it takes a vector to tell whether native arithmetic will do.

const PAIRS: u32 = ROWS / PARTS;

// By token: a gate in the low half, its up in the high one.
var<workgroup> halves: array<u32, TOKENS * PAIRS>;

// Two neighbours' gates.
fn gate_word(at: u32) -> u32 {
    return (halves[at] & 0xffffu) | (halves[at + 1u] << 16u);
}

// Two neighbours' ups.
fn up_word(at: u32) -> u32 {
    return (halves[at] >> 16u) | (halves[at + 1u] & 0xffff0000u);
}

@compute @workgroup_size(LANES * ROWS)
fn gemv_gated(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let lane = local % LANES;
    let subgroup = local / LANES;
    let first = (group.y * groups.x + group.x) * PAIRS;
    // The reductions need every invocation: those without a row do the last again.
    let pair = min(first + subgroup / PARTS, call.rows / 2u - 1u);
    add_up(vec2(call.gate_row + pair, call.up_row + pair), local);
    if subgroup % PARTS == 0u && lane < TOKENS {
        let sums = total(subgroup, lane);
        let bits = narrow_as(FLOAT, sums.x) | (narrow_as(FLOAT, sums.y) << 16u);
        halves[lane * PAIRS + subgroup / PARTS] = bits;
    }
    workgroupBarrier();
    if local >= min(TOKENS, call.tokens) || first >= call.rows / 2u {
        return;
    }
    let own = local * PAIRS;
    let gate = vec4(
        gate_word(own),
        gate_word(own + 2u),
        gate_word(own + 4u),
        gate_word(own + 6u),
    );
    let up = vec4(up_word(own), up_word(own + 2u), up_word(own + 4u), up_word(own + 6u));
    let native = native_vector(gate, up);
    let to = (call.y_offset + local * call.y_stride + first) / 2u;
    atomicStore(&y[to], native.y.x);
    atomicStore(&y[to + 1u], native.y.y);
    atomicStore(&y[to + 2u], native.y.z);
    atomicStore(&y[to + 3u], native.y.w);
    if native.sound {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        let gates = gate_word(own + 2u * i);
        let ups = up_word(own + 2u * i);
        if needs_exact(gates, ups) {
            atomicStore(&y[to + i], gated_pair(gates, ups));
        }
    }
}
