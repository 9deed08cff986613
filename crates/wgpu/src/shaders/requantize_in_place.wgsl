// Rows in place, of bf16.
fn from_at(float: u32, position: u32) -> u32 {
    return (atomicLoad(&to[position >> 1u]) >> ((position & 1u) << 4u)) & 0xffffu;
}
