// The elements that are quantized: outputs of the activation.

fn count_hits(gate: f32, up: f32) {
    if call.op.clamp_place == 0u {
        return;
    }
    if !is_nan(gate) {
        var f = gate;
        if call.op.clamp_place == 2u {
            f = bitcast<f32>(narrow_scaled(0u, rounded(of_gate(gate))));
        }
        if exceeds(f, call.op.limit) {
            atomicAdd(&clamped[0], 1u);
        }
    }
    if exceeds(up, call.op.limit) {
        atomicAdd(&clamped[1], 1u);
    }
    if exceeds(-up, call.op.limit) {
        atomicAdd(&clamped[2], 1u);
    }
}

// One output times the route weight, rounded as y is, and widened.
fn routed(gate_bits: u32, up_bits: u32, route: f32) -> f32 {
    let gate = widen_as(FLOAT, gate_bits);
    let up = widen_as(FLOAT, up_bits);
    if is_nan(gate) || is_nan(up) || is_nan(route) {
        return nan();
    }
    var y = product_scaled(of_clamped_gate(gate), of_up(up));
    if call.quant.route_offset != NONE {
        y = product_scaled(y, unpacked(route));
    }
    let float = call.quant.rounded_to;
    return widen_as(float, narrow_scaled(float, y));
}

struct AttemptedEight {
    y: Eight,
    // Of the low four and of the high ones.
    sound: vec2<bool>,
}

// By the fast path that the activation's own kernel takes.
fn attempted(gate: array<vec4<u32>, 2>, up: array<vec4<u32>, 2>) -> AttemptedEight {
    if FLOAT == 0u {
        let low = quick_vector(gate[0], up[0]);
        let high = quick_vector(gate[1], up[1]);
        let y = Eight(bitcast<vec4<f32>>(low.y), bitcast<vec4<f32>>(high.y));
        return AttemptedEight(y, vec2(low.sound, high.sound));
    }
    let g = vec4(gate[0].xz | (gate[0].yw << vec2(16u)), gate[1].xz | (gate[1].yw << vec2(16u)));
    let u = vec4(up[0].xz | (up[0].yw << vec2(16u)), up[1].xz | (up[1].yw << vec2(16u)));
    var both: Attempt;
    if call.quant.path == 1u {
        both = quick_vector(g, u);
    } else {
        both = native_vector(g, u);
    }
    let y = Eight(widen_pairs(FLOAT, both.y.xy), widen_pairs(FLOAT, both.y.zw));
    return AttemptedEight(y, vec2(both.sound));
}

// Those beyond count are 0.
fn elements(row: u32, first: u32, count: u32) -> Eight {
    var gate: array<vec4<u32>, 2>;
    var up: array<vec4<u32>, 2>;
    for (var i = 0u; i < count; i++) {
        let j = (first + i) * call.in_step;
        let g = gate_at(FLOAT, call.gate_offset + row * call.gate_stride + j);
        let u = up_at(FLOAT, call.up_offset + row * call.up_stride + j);
        gate[i / 4u][i % 4u] = g;
        up[i / 4u][i % 4u] = u;
        if call.quant.hits_offset != NONE {
            count_hits(widen_as(FLOAT, g), widen_as(FLOAT, u));
        }
    }
    var y: array<vec4<f32>, 2>;
    var sound = vec2(false);
    let plain = call.quant.route_offset == NONE && call.quant.rounded_to == FLOAT;
    if plain && call.quant.path != 0u {
        let fast = attempted(gate, up);
        sound = fast.sound;
        y[0] = select(vec4(0.0), fast.y.low, sound.x);
        y[1] = select(vec4(0.0), fast.y.high, sound.y);
    }
    var route = 1.0;
    if call.quant.route_offset != NONE {
        route = routes[call.quant.route_offset + call.quant.first_row + row];
    }
    // One by one: drivers would compile eight copies of the whole operation for seconds.
    for (var i = 0u; i < count; i++) {
        if !sound[i / 4u] {
            y[i / 4u][i % 4u] = routed(gate[i / 4u][i % 4u], up[i / 4u][i % 4u], route);
        }
    }
    return Eight(y[0], y[1]);
}
