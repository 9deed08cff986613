// Quantization of rows to FP8. What gives the elements is another file.
//
// ## Method
// 1. An invocation takes eight elements of a row, a workgroup 2048 of them, all of whose groups it
//    sees whole.
// 2. The largest magnitude of a group is the largest of the bits, by atomics in the workgroup's memory.
// 3. Each invocation makes its group's scale and its codes; the first of a group stores the scale.

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

// A matrix that is no activation's input is bound as both.
@group(0) @binding(0) var<storage, read> gates: array<u32>;
@group(0) @binding(1) var<storage, read> ups: array<u32>;
@group(0) @binding(2) var<storage, read> routes: array<f32>;
@group(0) @binding(3) var<storage, read> counts: array<i32>;
// Atomic, because rows and groups share words.
@group(0) @binding(4) var<storage, read_write> codes: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> scales: array<atomic<u32>>;
@group(0) @binding(6) var<storage, read_write> hits: array<atomic<u32>>;

const PER: u32 = 8u;
const LEAST_GROUP: u32 = 32u;

// The largest magnitude of each group, as bits: among them NaN is the largest.
var<workgroup> largest: array<atomic<u32>, WORKGROUP * PER / LEAST_GROUP>;
var<workgroup> clamped: array<atomic<u32>, 3>;

fn gate_at(float: u32, position: u32) -> u32 {
    if float == 0u {
        return gates[position];
    }
    return (gates[position >> 1u] >> ((position & 1u) << 4u)) & 0xffffu;
}

fn up_at(float: u32, position: u32) -> u32 {
    if float == 0u {
        return ups[position];
    }
    return (ups[position >> 1u] >> ((position & 1u) << 4u)) & 0xffffu;
}

fn in_use(row: u32) -> bool {
    let rows = call.quant.batch_rows;
    return rows == 0u || i32(row % rows) < counts[call.quant.counts_offset + row / max(rows, 1u)];
}

fn largest_of(v: vec4<f32>) -> u32 {
    let m = bitcast<vec4<u32>>(v) & vec4(0x7fffffffu);
    return max(max(m.x, m.y), max(m.z, m.w));
}

fn four_codes(y: vec4<f32>, stored: u32) -> u32 {
    return code_of(y.x, stored) | (code_of(y.y, stored) << 8u)
        | (code_of(y.z, stored) << 16u) | (code_of(y.w, stored) << 24u);
}

fn store_code(at: u32, code: u32) {
    let shift = (at & 3u) << 3u;
    atomicAnd(&codes[at >> 2u], ~(0xffu << shift));
    atomicOr(&codes[at >> 2u], code << shift);
}

fn store_codes(at: u32, word: u32, count: u32) {
    if count >= 4u && at % 4u == 0u {
        atomicStore(&codes[at >> 2u], word);
        return;
    }
    for (var i = 0u; i < min(count, 4u); i++) {
        store_code(at + i, (word >> (8u * i)) & 0xffu);
    }
}

fn store_scale(row: u32, group: u32, stored: u32) {
    let at = scale_position(row, group);
    if call.quant.format == 0u {
        atomicStore(&scales[at], stored);
        return;
    }
    let shift = (at & 3u) << 3u;
    atomicAnd(&scales[at >> 2u], ~(0xffu << shift));
    atomicOr(&scales[at >> 2u], stored << shift);
}

@compute @workgroup_size(WORKGROUP)
fn quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let part = group.y * groups.x + group.x;
    // Workgroups beyond the last have no rows.
    let row = min(part / call.row_units, call.rows);
    let first = (part % call.row_units * WORKGROUP + local) * PER;
    let all_row = call.quant.first_row + row;
    var count = 0u;
    if row < call.rows && first < call.d && in_use(all_row) {
        count = min(PER, call.d - first);
    }
    let own = local * PER / call.quant.group;
    if local < WORKGROUP * PER / LEAST_GROUP {
        atomicStore(&largest[local], 0u);
    }
    if local < 3u {
        atomicStore(&clamped[local], 0u);
    }
    workgroupBarrier();
    var y = Eight(vec4(0.0), vec4(0.0));
    if count > 0u {
        y = elements(row, first, count);
        atomicMax(&largest[own], max(largest_of(y.low), largest_of(y.high)));
    }
    workgroupBarrier();
    if count > 0u {
        var stored = scale_of(atomicLoad(&largest[own]));
        if call.quant.format == 1u {
            stored = ceil_e8m0(stored);
        }
        if first % call.quant.group == 0u {
            let g = first / call.quant.group;
            store_scale(all_row, g, stored);
            // Groups that are not there are zeros in a packed word.
            for (var h = g + 1u; call.quant.order == 2u && g + 1u == call.quant.groups && h % 4u != 0u; h++) {
                store_scale(all_row, h, 0u);
            }
        }
        let is_nan_group = select(stored > 0x7f800000u, stored == 255u, call.quant.format == 1u);
        var low = 0x7f7f7f7fu;
        var high = 0x7f7f7f7fu;
        if !is_nan_group {
            low = four_codes(y.low, stored);
            high = four_codes(y.high, stored);
        }
        let at = call.out_offset + row * call.out_stride + first;
        store_codes(at, low, count);
        if count > 4u {
            store_codes(at + 4u, high, count - 4u);
        }
    }
    if call.quant.hits_offset != NONE && local < 3u {
        atomicAdd(&hits[call.quant.hits_offset + local], atomicLoad(&clamped[local]));
    }
}
