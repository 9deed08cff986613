// Codes times scales: an invocation makes two elements of a row.

@group(0) @binding(0) var<storage, read> codes: array<u32>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;
// Atomic, because two rows can share a word.
@group(0) @binding(2) var<storage, read_write> output: array<atomic<u32>>;

fn byte_at(word: u32, position: u32) -> u32 {
    return (word >> ((position & 3u) << 3u)) & 0xffu;
}

// The bits of code * scale in the output's type, rounded once.
fn value(row: u32, j: u32) -> u32 {
    let float = call.quant.rounded_to;
    let at = call.gate_offset + row * call.gate_stride + j;
    let code = widen_e4m3(byte_at(codes[at >> 2u], at)).x;
    let place = scale_position(call.quant.first_row + row, j / call.quant.group);
    if call.quant.format == 1u {
        return decoded(float, code, byte_at(scales[place >> 2u], place));
    }
    return decoded(float, code, scales[place]);
}

fn store_half(at: u32, bits: u32) {
    let shift = (at & 1u) << 4u;
    atomicAnd(&output[at >> 1u], ~(0xffffu << shift));
    atomicOr(&output[at >> 1u], bits << shift);
}

@compute @workgroup_size(WORKGROUP)
fn dequantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let unit = unit_index(group, groups, local);
    if unit >= call.rows * call.row_units {
        return;
    }
    let row = unit / call.row_units;
    let j = unit % call.row_units * 2u;
    let at = call.out_offset + row * call.out_stride + j;
    let first = value(row, j);
    let both = j + 1u < call.d;
    var second = 0u;
    if both {
        second = value(row, j + 1u);
    }
    if call.quant.rounded_to == 0u {
        atomicStore(&output[at], first);
        if both {
            atomicStore(&output[at + 1u], second);
        }
    } else if both && at % 2u == 0u {
        atomicStore(&output[at >> 1u], first | (second << 16u));
    } else {
        store_half(at, first);
        if both {
            store_half(at + 1u, second);
        }
    }
}
