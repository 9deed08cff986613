// The elements that are quantised: outputs of the activation.

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
    let gate = widen_as(DTYPE, gate_bits);
    let up = widen_as(DTYPE, up_bits);
    if is_nan(gate) || is_nan(up) || is_nan(route) {
        return nan();
    }
    var y = product_scaled(of_clamped_gate(gate), of_up(up));
    if call.quant.has_route == 1u {
        y = product_scaled(y, unpacked(route));
    }
    let dtype = call.quant.rounded_to;
    return widen_as(dtype, narrow_scaled(dtype, y));
}

fn routed_four(gate: vec4<u32>, up: vec4<u32>, route: f32) -> vec4<f32> {
    return vec4(
        routed(gate.x, up.x, route),
        routed(gate.y, up.y, route),
        routed(gate.z, up.z, route),
        routed(gate.w, up.w, route),
    );
}

// As the activation's own kernels compute it.
fn plain(gate: array<vec4<u32>, 2>, up: array<vec4<u32>, 2>) -> Eight {
    let vectors = call.quant.path != 0u;
    if DTYPE == 0u {
        if vectors {
            let low = gated_vector(gate[0], up[0]);
            return Eight(bitcast<vec4<f32>>(low), bitcast<vec4<f32>>(gated_vector(gate[1], up[1])));
        }
        let low = gated_one_by_one(gate[0], up[0]);
        return Eight(bitcast<vec4<f32>>(low), bitcast<vec4<f32>>(gated_one_by_one(gate[1], up[1])));
    }
    let g = vec4(gate[0].xz | (gate[0].yw << vec2(16u)), gate[1].xz | (gate[1].yw << vec2(16u)));
    let u = vec4(up[0].xz | (up[0].yw << vec2(16u)), up[1].xz | (up[1].yw << vec2(16u)));
    var y: vec4<u32>;
    if call.quant.path == 1u {
        y = gated_vector(g, u);
    } else {
        var native: Native;
        if call.quant.path == 2u {
            native = native_vector(g, u);
        }
        y = native.y;
        if !native.sound {
            y = gated_one_by_one(g, u);
        }
    }
    return Eight(widen_pairs(DTYPE, y.xy), widen_pairs(DTYPE, y.zw));
}

fn elements(row: u32, first: u32, count: u32) -> Eight {
    var gate: array<vec4<u32>, 2>;
    var up: array<vec4<u32>, 2>;
    for (var i = 0u; i < count; i++) {
        let at = row * call.in_stride + (first + i) * call.in_step;
        let g = element_at(DTYPE, call.gate_offset + at);
        let u = element_at(DTYPE, call.up_offset + at);
        gate[i / 4u][i % 4u] = g;
        up[i / 4u][i % 4u] = u;
        if call.quant.has_hits == 1u {
            count_hits(widen_as(DTYPE, g), widen_as(DTYPE, u));
        }
    }
    if call.quant.has_route == 0u && call.quant.rounded_to == DTYPE {
        return plain(gate, up);
    }
    var route = 1.0;
    if call.quant.has_route == 1u {
        route = routes[call.quant.first_row + row];
    }
    var y = Eight(routed_four(gate[0], up[0], route), routed_four(gate[1], up[1], route));
    // A weight without end makes NaN of the zeros that stand beyond the row.
    for (var i = count; i < PER; i++) {
        if i < 4u {
            y.low[i] = 0.0;
        } else {
            y.high[i - 4u] = 0.0;
        }
    }
    return y;
}
