// Any offset, stride and d: an invocation owns a word of the output.
//
// A word of two 16-bit elements can hold elements of two rows, or one that is not the caller's to
// write. Rows meet in a word only where one ends and the next begins, with nothing between; the
// earlier row's invocation then computes both. What belongs to nobody is written back as it was.

@group(0) @binding(0) var<storage, read> gates: array<u32>;
@group(0) @binding(1) var<storage, read> ups: array<u32>;
@group(0) @binding(2) var<storage, read_write> output: array<u32>;

fn gate_at(position: u32) -> u32 {
    if FLOAT == 0u {
        return gates[position];
    }
    return (gates[position >> 1u] >> ((position & 1u) << 4u)) & 0xffffu;
}

fn up_at(position: u32) -> u32 {
    if FLOAT == 0u {
        return ups[position];
    }
    return (ups[position >> 1u] >> ((position & 1u) << 4u)) & 0xffffu;
}

fn result(row: u32, j: u32) -> u32 {
    let gate = call.gate_offset + row * call.gate_stride + j * call.in_step;
    let up = call.up_offset + row * call.up_stride + j * call.in_step;
    return gated(gate_at(gate), up_at(up));
}

@compute @workgroup_size(WORKGROUP)
fn activation_words(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let unit = unit_index(group, groups, local);
    if unit >= call.units {
        return;
    }
    let row = unit / call.row_units;
    let i = unit % call.row_units;
    let start = call.out_offset + row * call.out_stride;
    if FLOAT == 0u {
        output[start + i] = result(row, i);
        return;
    }
    let word = (start >> 1u) + i;
    let low = i32(2u * word) - i32(start);
    let high = low + 1;
    let d = i32(call.d);
    let dense = call.out_stride == call.d;
    if low >= d || (low < 0 && dense && row > 0u) {
        return;
    }
    // (row, j) of each half, where it is in a row.
    let owns_low = low >= 0;
    let next = high >= d;
    let owns_high = !next || (dense && row + 1u < call.rows);
    var kept = 0u;
    if !(owns_low && owns_high) {
        kept = output[word];
    }
    var low_bits = kept & 0xffffu;
    var high_bits = kept >> 16u;
    if owns_low {
        low_bits = result(row, u32(low));
    }
    if owns_high {
        high_bits = result(row + u32(next), select(u32(high), 0u, next));
    }
    output[word] = low_bits | (high_bits << 16u);
}
