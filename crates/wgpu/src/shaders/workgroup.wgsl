// Invocations counted through all workgroups.

const WORKGROUP: u32 = 256u;

fn unit_index(group: vec3<u32>, groups: vec3<u32>, local: u32) -> u32 {
    return (group.y * groups.x + group.x) * WORKGROUP + local;
}
