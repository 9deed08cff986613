// The sums over the lanes of a row, where they are a subgroup.
fn reduce(values: vec2<f32>, local: u32, lane: u32) -> vec2<f32> {
    return vec2(subgroupAdd(values.x), subgroupAdd(values.y));
}

