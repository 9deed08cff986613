// Rows, offsets and d in whole vectors of 16 bytes: an invocation makes one vector of the output.

@group(0) @binding(0) var<storage, read> gates: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> ups: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<u32>>;

const VECTOR_WORKGROUP: u32 = 128u;

// Elements in a vector: 4 or 8.
fn per_vector() -> u32 {
    return select(8u, 4u, FLOAT == 0u);
}

// A workgroup takes 2^columns_log2 vectors of each of its rows: nothing is divided.
fn place(group: vec3<u32>, groups: vec3<u32>, local: u32) -> vec2<u32> {
    let rows = VECTOR_WORKGROUP >> call.columns_log2;
    let row = (group.z * groups.y + group.y) * rows + (local >> call.columns_log2);
    let j = (group.x << call.columns_log2) + (local & ((1u << call.columns_log2) - 1u));
    return vec2(row, j);
}

@compute @workgroup_size(VECTOR_WORKGROUP)
fn activation_vectors(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let at = place(group, groups, local);
    if at.x >= call.rows || at.y >= call.row_units {
        return;
    }
    let per = per_vector();
    let first = call.gate_offset / per + at.x * (call.gate_stride / per) + at.y * call.in_step;
    var gate = gates[first];
    var up: vec4<u32>;
    if call.in_step == 1u {
        up = ups[call.up_offset / per + at.x * (call.up_stride / per) + at.y];
    } else {
        // Alternating elements: two vectors hold the pairs.
        let next = gates[first + 1u];
        if FLOAT == 0u {
            up = vec4(gate.y, gate.w, next.y, next.w);
            gate = vec4(gate.x, gate.z, next.x, next.z);
        } else {
            let a = (gate.xz & vec2(0xffffu)) | (gate.yw << vec2(16u));
            let b = (next.xz & vec2(0xffffu)) | (next.yw << vec2(16u));
            up = vec4(
                (gate.xz >> vec2(16u)) | (gate.yw & vec2(0xffff0000u)),
                (next.xz >> vec2(16u)) | (next.yw & vec2(0xffff0000u)),
            );
            gate = vec4(a, b);
        }
    }
    output[call.out_offset / per + at.x * (call.out_stride / per) + at.y] = gated_vector(gate, up);
}

// Whether there is one row, of whole workgroups, from the start of every binding: no address waits
// for the call then.
override ONE_ROW: bool = false;

@compute @workgroup_size(VECTOR_WORKGROUP)
fn activation_native(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    var gate_at = group.x * VECTOR_WORKGROUP + local;
    var up_at = gate_at;
    var to = gate_at;
    if !ONE_ROW {
        let at = place(group, groups, local);
        if at.x >= call.rows || at.y >= call.row_units {
            return;
        }
        gate_at = call.gate_offset / 8u + at.x * (call.gate_stride / 8u) + at.y;
        up_at = call.up_offset / 8u + at.x * (call.up_stride / 8u) + at.y;
        to = call.out_offset / 8u + at.x * (call.out_stride / 8u) + at.y;
    }
    let native = native_vector(gates[gate_at], ups[up_at]);
    output[to] = native.y;
    if native.sound {
        return;
    }
    // Rare, and so from memory again: registers held for it would be every invocation's.
    for (var i = 0u; i < 4u; i++) {
        let gate = gates[gate_at][i];
        let up = ups[up_at][i];
        if needs_exact(gate, up) {
            output[to][i] = gated_pair(gate, up);
        }
    }
}
