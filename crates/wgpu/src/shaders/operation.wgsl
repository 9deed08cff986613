// The operation on one pair of gate and up, as swiglu_core::reference has it. What `call` is and
// which type op_dtype() tells another file says.

// What a pipeline is made for.
override DTYPE: u32;

// Whether the pipeline is for silu alone, which spares it the registers of the other functions.
override ONLY_SILU: bool;

fn rounded(x: Scaled) -> Scaled {
    if call.op.eager == 1u {
        return unpacked(widen_as(op_dtype(), narrow_scaled(op_dtype(), x)));
    }
    return x;
}

fn of_gate(x: f32) -> Scaled {
    if (ONLY_SILU || call.op.function != 3u) && magnitude(x) <= SMALL {
        let small = unpacked(x);
        let value = select(vec4(small.value), nudged(vec4(x), vec4(x)), needs_nudge(vec4(x)));
        return Scaled(value.x, small.exponent - 1);
    }
    if ONLY_SILU {
        return silu(call.op.parameter, x);
    }
    switch call.op.function {
        case 0u: {
            return silu(call.op.parameter, x);
        }
        case 1u: {
            return gelu(x);
        }
        case 2u: {
            return gelu_tanh(x);
        }
        case 3u: {
            if at_most(x, call.op.parameter) {
                return Scaled(0.0, 0);
            }
            return unpacked(x);
        }
        default: {
            return situ(call.op.parameter, x);
        }
    }
}

fn of_up(x: f32) -> Scaled {
    var u = x;
    if call.op.clamp_place != 0u {
        u = clamp_both(u, call.op.limit);
    }
    if !ONLY_SILU && call.op.function == 5u && magnitude(u) > SMALL {
        u = bounded(u, call.op.up_bound);
    }
    if call.op.up_add != 0.0 {
        u += call.op.up_add;
    }
    return rounded(unpacked(u));
}

// What the function gives for the gate, clamped where the clamp comes after it.
fn of_clamped_gate(x: f32) -> Scaled {
    if call.op.clamp_place == 1u && exceeds(x, call.op.limit) {
        return rounded(of_gate(rounded(Scaled(call.op.limit, 0)).value));
    }
    let f = rounded(of_gate(x));
    if call.op.clamp_place == 2u && exceeds(bitcast<f32>(narrow_scaled(0u, f)), call.op.limit) {
        return rounded(Scaled(call.op.limit, 0));
    }
    return f;
}

fn gated(gate_bits: u32, up_bits: u32) -> u32 {
    let gate = widen_as(op_dtype(), gate_bits);
    let up = widen_as(op_dtype(), up_bits);
    if is_nan(gate) || is_nan(up) {
        return narrow_as(op_dtype(), nan());
    }
    return narrow_scaled(op_dtype(), product_scaled(of_clamped_gate(gate), of_up(up)));
}
