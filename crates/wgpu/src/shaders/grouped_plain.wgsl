// The second half of a layer of experts stores its sums as they are: these are never called.

fn activated(gate_sum: f32, up_sum: f32, route: f32) -> u32 {
    return 0u;
}

fn weight_of(n: u32) -> f32 {
    return 0.0;
}
