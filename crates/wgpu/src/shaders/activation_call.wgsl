// A call of an activation on one window of rows. Offsets, strides and positions count elements.

struct ActivationCall {
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
    // From one row to the next: the halves may be two matrices.
    gate_stride: u32,
    up_stride: u32,
    // From one gate to the next: 1, or 2 where the halves alternate.
    in_step: u32,
    out_offset: u32,
    out_stride: u32,
    op: Op,
}

var<immediate> call: ActivationCall;
