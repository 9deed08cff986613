// The sums over the LANES of a row, where subgroups have other numbers of lanes, powers of two: several
// subgroups share a row, or one has several rows.

// Set at each kernel's start.
var<private> subgroup_lanes: u32;

var<workgroup> partial: array<vec2<f32>, LANES * ROWS>;

// Every invocation of the workgroup must call it.
fn reduce(values: vec2<f32>, local: u32, lane: u32) -> vec2<f32> {
    var sum = values;
    if subgroup_lanes <= LANES {
        sum = vec2(subgroupAdd(values.x), subgroupAdd(values.y));
    } else {
        for (var apart = 1u; apart < LANES; apart *= 2u) {
            sum += vec2(subgroupShuffleXor(sum.x, apart), subgroupShuffleXor(sum.y, apart));
        }
    }
    // What an earlier call left has been read by all.
    workgroupBarrier();
    partial[local] = sum;
    workgroupBarrier();
    var total = vec2(0.0);
    for (var i = 0u; i < LANES; i += min(subgroup_lanes, LANES)) {
        total += partial[local - lane + i];
    }
    return total;
}
