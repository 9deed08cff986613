// What memory gives: reads alone, and two for each write.

@group(0) @binding(0) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> to: array<vec4<u32>>;

const INVOCATIONS: u32 = 256u;
const READS: u32 = 8u;

@compute @workgroup_size(INVOCATIONS)
fn read_alone(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let first = (group.y * groups.x + group.x) * INVOCATIONS * READS + local;
    var all = vec4(0u);
    for (var i = 0u; i < READS; i++) {
        all |= a[first + i * INVOCATIONS];
    }
    // Which no element has: a compiler cannot know.
    if (all.x & 1u << 31u) != 0u {
        to[0] = all;
    }
}

@compute @workgroup_size(INVOCATIONS)
fn read_and_write(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * INVOCATIONS + local;
    to[i] = a[i] ^ b[i];
}
