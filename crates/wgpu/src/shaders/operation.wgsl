// The operation on one pair of gate and up, as swiglu_core::reference has it: clamp, function, product
// and the roundings between. What `call` is, another file says.

// The type of the elements that the pipeline is made for.
override FLOAT: u32;

fn rounded(x: Scaled) -> Scaled {
    if call.op.eager == 1u {
        return unpacked(widen_as(FLOAT, narrow_scaled(FLOAT, x)));
    }
    return x;
}

fn of_up(x: f32) -> Scaled {
    var u = x;
    if call.op.clamp_place != 0u {
        u = clamp_both(u, call.op.limit);
    }
    // No function that bounds up adds to it.
    if magnitude(call.op.up_add) != 0u {
        return rounded(sum_scaled(u, call.op.up_add));
    }
    return rounded(of_bounded_up(u));
}

// What the function gives for the gate, clamped where the clamp comes after it.
fn of_clamped_gate(x: f32) -> Scaled {
    if call.op.clamp_place == 1u && exceeds(x, call.op.limit) {
        return rounded(of_gate(bitcast<f32>(narrow_scaled(0u, rounded(unpacked(call.op.limit))))));
    }
    let f = rounded(of_gate(x));
    if call.op.clamp_place == 2u && exceeds(bitcast<f32>(narrow_scaled(0u, f)), call.op.limit) {
        return rounded(unpacked(call.op.limit));
    }
    return f;
}

fn gated(gate_bits: u32, up_bits: u32) -> u32 {
    let gate = widen_as(FLOAT, gate_bits);
    let up = widen_as(FLOAT, up_bits);
    if is_nan(gate) || is_nan(up) {
        return narrow_as(FLOAT, nan());
    }
    return narrow_scaled(FLOAT, product_scaled(of_clamped_gate(gate), of_up(up)));
}
