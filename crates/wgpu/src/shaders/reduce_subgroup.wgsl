// The sum over the lanes of a row, where they are a subgroup.
fn reduce(value: f32, local: u32, lane: u32) -> f32 {
    return subgroupAdd(value);
}

