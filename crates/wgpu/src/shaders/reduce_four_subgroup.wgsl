// The sums over the lanes of four values, where they are a subgroup: in each eight lanes those of one. Lanes give away what
// others add up, so that four values take little more than one.
fn reduce_four(values: vec4<f32>, local: u32, lane: u32) -> f32 {
    let upper = (lane & 16u) != 0u;
    let two = select(values.xy, values.zw, upper)
        + subgroupShuffleXor(select(values.zw, values.xy, upper), 16u);
    let odd = (lane & 8u) != 0u;
    var sum = select(two.x, two.y, odd) + subgroupShuffleXor(select(two.y, two.x, odd), 8u);
    sum += subgroupShuffleXor(sum, 4u);
    sum += subgroupShuffleXor(sum, 2u);
    return sum + subgroupShuffleXor(sum, 1u);
}
