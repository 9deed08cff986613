// A call of the operation on rows.

// One call on one window of rows. Offsets, strides and positions count elements.
struct Call {
    // Units of work, where they are counted through all rows.
    units: u32,
    // Vectors of a row that one workgroup takes, where it takes a part of some rows.
    columns_log2: u32,
    // Units in a row: words or vectors of the output.
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
    op: Op,
    quant: Quant,
}

// What a fused quantization adds to a call.
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
    // How the activation alone would compute: 0: by elements, 1: by vectors, 2: natively.
    path: u32,
}

var<immediate> call: Call;

fn op_dtype() -> u32 {
    return DTYPE;
}

const WORKGROUP: u32 = 256u;

fn unit_index(group: vec3<u32>, groups: vec3<u32>, local: u32) -> u32 {
    return (group.y * groups.x + group.x) * WORKGROUP + local;
}
