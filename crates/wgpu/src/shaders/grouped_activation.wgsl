// What the first half of a layer of experts makes of a gate and an up.

// The activation of both, rounded to bf16 first as if they had been stored, times the route's weight, to bf16.
fn activated(gate_sum: f32, up_sum: f32, route: f32) -> u32 {
    let gate = widen_as(FLOAT, narrow_as(FLOAT, gate_sum));
    let up = widen_as(FLOAT, narrow_as(FLOAT, up_sum));
    if is_nan(gate) || is_nan(up) || is_nan(route) {
        return narrow_as(FLOAT, nan());
    }
    let y = product_scaled(of_clamped_gate(gate), of_up(up));
    return narrow_scaled(FLOAT, product_scaled(y, unpacked(route)));
}

// The weight of the item's nth row.
fn weight_of(n: u32) -> f32 {
    return route_weights[min(route_of(n), arrayLength(&route_weights) - 1u)];
}
