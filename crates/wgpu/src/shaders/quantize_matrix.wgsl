// The elements that are quantized: a matrix, of the type that call.quant.rounded_to numbers.

fn elements(row: u32, first: u32, count: u32) -> Eight {
    let float = call.quant.rounded_to;
    var y = Eight(vec4(0.0), vec4(0.0));
    for (var i = 0u; i < count; i++) {
        let at = call.gate_offset + row * call.gate_stride + first + i;
        let value = widen_as(float, gate_at(float, at));
        if i < 4u {
            y.low[i] = value;
        } else {
            y.high[i - 4u] = value;
        }
    }
    return y;
}
