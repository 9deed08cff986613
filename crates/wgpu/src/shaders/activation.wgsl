// The operation on one pair of gate and up, as swiglu_core::reference has it.

// One call on one window of rows. Offsets, strides and positions count elements.
struct Call {
    // Units of work: words or vectors of the output.
    units: u32,
    // Units in a row.
    row_units: u32,
    rows: u32,
    // Elements in a row of the output.
    d: u32,
    gate_offset: u32,
    up_offset: u32,
    in_stride: u32,
    // From one gate to the next: 1, or 2 where the halves alternate.
    in_step: u32,
    out_offset: u32,
    out_stride: u32,
    // 0: silu, 1: gelu, 2: gelu_tanh, 3: fatrelu, 4: situ, 5: situ with a bound for up.
    function: u32,
    // 0: none, 1: before the function, 2: after it.
    clamp_place: u32,
    // Rounds between the steps if 1.
    eager: u32,
    limit: f32,
    // silu: alpha; fatrelu: the threshold; situ: beta.
    parameter: f32,
    // silu: the upper 12 bits of alpha, and the rest.
    alpha_high: f32,
    alpha_low: f32,
    // situ: the bound for up.
    up_bound: f32,
    // Added to up; 0 adds nothing, not even to -0.
    up_add: f32,
    // Added to a gate's magnitude (to both of a pair at once), this sets the top bit where the
    // quick path must not be taken. 0 where there is no quick path.
    gate_guard: u32,
    quant: Quant,
}

// What a fused quantisation adds to a call.
struct Quant {
    // Elements that share a scale, and such groups in a row.
    group: u32,
    groups: u32,
    // 0: f32, 1: ue8m0.
    format: u32,
    // 0: row-major, 1: column-major, 2: packed.
    order: u32,
    scale_stride: u32,
    floor: f32,
    // The type that y is rounded to before amax.
    rounded_to: u32,
    // The window's first row among all.
    first_row: u32,
    // Rows of a batch; 0 where there are no counts.
    batch_rows: u32,
    // 1 where there are route weights, and counters of clamped values.
    has_route: u32,
    has_hits: u32,
    // 1 where the activation alone would take whole vectors.
    vectors: u32,
}

var<immediate> call: Call;

// Whether the pipeline is for silu alone, which spares it the registers of the other functions.
override ONLY_SILU: bool;

fn rounded(x: Scaled) -> Scaled {
    if call.eager == 1u {
        return unpacked(widen_as(DTYPE, narrow_scaled(DTYPE, x)));
    }
    return x;
}

fn of_gate(x: f32) -> Scaled {
    if (ONLY_SILU || call.function != 3u) && magnitude(x) <= SMALL {
        let small = unpacked(x);
        let value = select(vec4(small.value), nudged(vec4(x), vec4(x)), needs_nudge(vec4(x)));
        return Scaled(value.x, small.exponent - 1);
    }
    if ONLY_SILU {
        return silu(call.parameter, x);
    }
    switch call.function {
        case 0u: {
            return silu(call.parameter, x);
        }
        case 1u: {
            return gelu(x);
        }
        case 2u: {
            return gelu_tanh(x);
        }
        case 3u: {
            if at_most(x, call.parameter) {
                return Scaled(0.0, 0);
            }
            return unpacked(x);
        }
        default: {
            return situ(call.parameter, x);
        }
    }
}

fn of_up(x: f32) -> Scaled {
    var u = x;
    if call.clamp_place != 0u {
        u = clamp_both(u, call.limit);
    }
    if !ONLY_SILU && call.function == 5u && magnitude(u) > SMALL {
        u = bounded(u, call.up_bound);
    }
    if call.up_add != 0.0 {
        u += call.up_add;
    }
    return rounded(unpacked(u));
}

// What the function gives for the gate, clamped where the clamp comes after it.
fn of_clamped_gate(x: f32) -> Scaled {
    if call.clamp_place == 1u && exceeds(x, call.limit) {
        return rounded(of_gate(rounded(Scaled(call.limit, 0)).value));
    }
    let f = rounded(of_gate(x));
    if call.clamp_place == 2u && exceeds(bitcast<f32>(narrow_scaled(0u, f)), call.limit) {
        return rounded(Scaled(call.limit, 0));
    }
    return f;
}

fn gated(gate_bits: u32, up_bits: u32) -> u32 {
    let gate = widen_as(DTYPE, gate_bits);
    let up = widen_as(DTYPE, up_bits);
    if is_nan(gate) || is_nan(up) {
        return narrow_as(DTYPE, nan());
    }
    return narrow_scaled(DTYPE, product_scaled(of_clamped_gate(gate), of_up(up)));
}

const WORKGROUP: u32 = 256u;

fn unit_index(group: vec3<u32>, groups: vec3<u32>, local: u32) -> u32 {
    return (group.y * groups.x + group.x) * WORKGROUP + local;
}
