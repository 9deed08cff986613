// Rows that lie elsewhere.
@group(0) @binding(0) var<storage, read> source: array<u32>;

fn from_at(float: u32, position: u32) -> u32 {
    if float == 0u {
        return source[position];
    }
    return (source[position >> 1u] >> ((position & 1u) << 4u)) & 0xffffu;
}
