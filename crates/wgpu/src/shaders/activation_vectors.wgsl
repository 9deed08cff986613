// Rows, offsets and d in whole vectors of 16 bytes: an invocation makes one vector of the output.

@group(0) @binding(0) var<storage, read> gates: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> ups: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<u32>>;

// Elements in a vector: 4 or 8.
fn per_vector() -> u32 {
    return select(8u, 4u, DTYPE == 0u);
}

@compute @workgroup_size(WORKGROUP)
fn activation_vectors(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let unit = unit_index(group, groups, local);
    if unit >= call.units {
        return;
    }
    let row = unit / call.row_units;
    let j = unit % call.row_units;
    let per = per_vector();
    let first = row * (call.in_stride / per) + j * call.in_step;
    var gate = gates[call.gate_offset / per + first];
    var up: vec4<u32>;
    if call.in_step == 1u {
        up = ups[call.up_offset / per + first];
    } else {
        // Alternating elements: two vectors hold the pairs.
        let next = gates[call.gate_offset / per + first + 1u];
        if DTYPE == 0u {
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
    let at = (call.out_offset + row * call.out_stride) / per + j;
    output[at] = gated_vector(gate, up);
}
