// Two neighbouring columns of an item's row, from sums that lie one after another: of each column one, or a gate and
// an up.
fn store_outputs(row: u32, sums: u32, first: u32, pair: u32) {
    var both = vec2(0u);
    for (var i = 0u; i < 2u; i++) {
        if GATED {
            let at = sums + 2u * (2u * pair + i);
            both[i] = activated(outputs[at], outputs[at + 1u], weight_of(row));
        } else {
            both[i] = narrow_bf16(outputs[sums + 2u * pair + i]);
        }
    }
    if first + 2u * pair < call.cols {
        store_pair(row, first + 2u * pair, both);
    }
}
