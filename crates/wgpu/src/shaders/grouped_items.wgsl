// Items of a list that `schedule_rows.wgsl` made.

@group(0) @binding(3) var<storage, read> schedule: array<vec4<u32>>;

var<workgroup> found: vec4<u32>;

// Takes the nth item of the buffer's experts, in the list that this kernel is for: whether there is one, the same
// for the whole workgroup. Every invocation must call it.
fn take_item(n: u32, local: u32) -> bool {
    if local == 0u {
        let first = schedule[call.first_expert][LIST] + n;
        found = vec4(0u);
        if first < schedule[call.end_expert][LIST] {
            found = schedule[call.items + first];
        }
    }
    let own = workgroupUniformLoad(&found);
    item = Item(own.x, own.y, own.z);
    return own.z != 0u;
}
