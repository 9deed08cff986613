// A call of a quantization, or of its inverse, on one window of rows. Offsets, strides and positions
// count elements.

struct QuantizeCall {
    // Units of work in a row.
    row_units: u32,
    rows: u32,
    // Elements in a row.
    d: u32,
    // Of a matrix that is no activation's input, and of codes that are read, the gate's are meant.
    gate_offset: u32,
    up_offset: u32,
    gate_stride: u32,
    up_stride: u32,
    // From one gate to the next: 1, or 2 where the halves alternate.
    in_step: u32,
    out_offset: u32,
    out_stride: u32,
    op: Op,
    quant: Quant,
}

var<immediate> call: QuantizeCall;
