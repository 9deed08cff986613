// Rows to FP8 and back to bf16: what matmuls of quantized rows read.
//
// ## Method
// 1. As in quantize.wgsl: an invocation takes eight elements of a row, a workgroup 2048 of them, all of whose
//    groups it sees whole; the largest magnitude of a group is made by atomics in the workgroup's memory.
// 2. Codes are not stored: each becomes its value at once.

struct RequantizeCall {
    // Workgroups of a row.
    row_units: u32,
    rows: u32,
    // Elements in a row.
    d: u32,
    from_offset: u32,
    from_stride: u32,
    to_offset: u32,
    to_stride: u32,
    // The window's first row among all.
    first_row: u32,
    // The experts whose rows these are, among all of the layer: NONE where all rows are.
    first_expert: u32,
    end_expert: u32,
    op: Op,
    quant: Quant,
}

var<immediate> call: RequantizeCall;

@group(0) @binding(1) var<storage, read> offsets: array<i32>;
// Atomic, because rows share words.
@group(0) @binding(2) var<storage, read_write> to: array<atomic<u32>>;

const PER: u32 = 8u;
const LEAST_GROUP: u32 = 32u;

// The largest magnitude of each group, as bits: among them NaN is the largest.
var<workgroup> largest: array<atomic<u32>, WORKGROUP * PER / LEAST_GROUP>;

fn in_use(row: u32) -> bool {
    if call.end_expert == NONE {
        return true;
    }
    return i32(row) >= offsets[call.first_expert] && i32(row) < offsets[call.end_expert];
}

fn store(at: u32, bits: u32) {
    let shift = (at & 1u) << 4u;
    atomicAnd(&to[at >> 1u], ~(0xffffu << shift));
    atomicOr(&to[at >> 1u], bits << shift);
}

@compute @workgroup_size(WORKGROUP)
fn requantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let part = group.y * groups.x + group.x;
    // Workgroups beyond the last have no rows.
    let row = min(part / call.row_units, call.rows);
    let first = (part % call.row_units * WORKGROUP + local) * PER;
    var count = 0u;
    if row < call.rows && first < call.d && in_use(call.first_row + row) {
        count = min(PER, call.d - first);
    }
    let own = local * PER / call.quant.group;
    if local < WORKGROUP * PER / LEAST_GROUP {
        atomicStore(&largest[local], 0u);
    }
    workgroupBarrier();
    let float = call.quant.rounded_to;
    let own_first = call.from_offset + row * call.from_stride + first;
    var values: array<f32, 8>;
    var most = 0u;
    for (var i = 0u; i < count; i++) {
        values[i] = widen_as(float, from_at(float, own_first + i));
        most = max(most, magnitude(values[i]));
    }
    if count > 0u {
        atomicMax(&largest[own], most);
    }
    workgroupBarrier();
    if count == 0u {
        return;
    }
    var stored = scale_of(atomicLoad(&largest[own]));
    if call.quant.format == 1u {
        stored = ceil_e8m0(stored);
    }
    let at = call.to_offset + row * call.to_stride + first;
    // One by one: drivers would compile eight copies.
    for (var i = 0u; i < count; i++) {
        let code = widen_e4m3(code_of(values[i], stored)).x;
        store(at + i, decoded(2u, code, stored));
    }
}
