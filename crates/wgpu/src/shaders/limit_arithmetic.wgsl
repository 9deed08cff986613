// What arithmetic in f32 gives: multiplications and additions, of sums that do not wait for one another.

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> to: array<vec4<f32>>;

const ROUNDS: u32 = 256u;

@compute @workgroup_size(256)
fn multiply_add(@builtin(local_invocation_index) local: u32) {
    // Less than 1, so that sums stay where they are. One number for all sums: four would have to be read from
    // registers again and again.
    let by = vec4(0.5 * fract(a[local % 4u].x));
    let more = vec4(b[local % 8u].y);
    var s0 = more;
    var s1 = more + 1.0;
    var s2 = more + 2.0;
    var s3 = more + 3.0;
    var s4 = more + 4.0;
    var s5 = more + 5.0;
    var s6 = more + 6.0;
    var s7 = more + 7.0;
    // Four times, so that counting is little beside it.
    for (var i = 0u; i < ROUNDS; i += 4u) {
        s0 = fma(s0, by, more);
        s1 = fma(s1, by, more);
        s2 = fma(s2, by, more);
        s3 = fma(s3, by, more);
        s4 = fma(s4, by, more);
        s5 = fma(s5, by, more);
        s6 = fma(s6, by, more);
        s7 = fma(s7, by, more);
        s0 = fma(s0, by, more);
        s1 = fma(s1, by, more);
        s2 = fma(s2, by, more);
        s3 = fma(s3, by, more);
        s4 = fma(s4, by, more);
        s5 = fma(s5, by, more);
        s6 = fma(s6, by, more);
        s7 = fma(s7, by, more);
        s0 = fma(s0, by, more);
        s1 = fma(s1, by, more);
        s2 = fma(s2, by, more);
        s3 = fma(s3, by, more);
        s4 = fma(s4, by, more);
        s5 = fma(s5, by, more);
        s6 = fma(s6, by, more);
        s7 = fma(s7, by, more);
        s0 = fma(s0, by, more);
        s1 = fma(s1, by, more);
        s2 = fma(s2, by, more);
        s3 = fma(s3, by, more);
        s4 = fma(s4, by, more);
        s5 = fma(s5, by, more);
        s6 = fma(s6, by, more);
        s7 = fma(s7, by, more);
    }
    let sum = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7));
    // Which no sum is: a compiler cannot know.
    if sum.x == -1.0 {
        to[0] = sum;
    }
}
