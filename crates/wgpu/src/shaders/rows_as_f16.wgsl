// Rows of bf16 as f16, each times the power of two that brings its largest magnitude to 2^15 and beyond,
// and behind each the logarithm that undoes it. A workgroup makes a row.
//
// Everything is done on the bits: drivers may take subnormal numbers for zero.

struct RowsCall {
    rows: u32,
    // Elements of a row, a multiple of 8.
    k: u32,
    // Of the input; rows of the output are 8 elements longer than k.
    offset: u32,
    stride: u32,
}

var<immediate> call: RowsCall;

@group(0) @binding(0) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4<u32>>;

var<workgroup> largest: array<u32, WORKGROUP>;
var<workgroup> largest_of_eight: array<u32, 32>;

// The bits of a magnitude of bf16, times 2^power, in f16: to nearest, ties to even.
fn half_of(bits: u32, power: i32) -> u32 {
    var exponent = i32(bits >> 7u);
    if exponent == 255 {
        return select(0x7c00u, 0x7e00u, bits > 0x7f80u);
    }
    var significand = bits & 0x7fu;
    if exponent == 0 {
        exponent = 1;
    } else {
        significand |= 0x80u;
    }
    // Where an f16's exponent is 0, its unit is 2^-24, and here the significand's is this much more.
    let shift = exponent + power - 134 + 24;
    if significand == 0u {
        return 0u;
    }
    if shift >= 0 && significand < 0x80u {
        // A subnormal number gets its leading 1.
        let places = countLeadingZeros(significand) - 24u;
        return packed_half(significand << places, shift - i32(places));
    }
    return packed_half(significand, shift);
}

// significand * 2^(shift - 24), for 8 bits led by a 1 or, below what f16 holds exactly, for any.
fn packed_half(significand: u32, shift: i32) -> u32 {
    if shift >= 4 {
        return ((significand & 0x7fu) << 3u) | (u32(shift - 2) << 10u);
    }
    if shift >= 0 {
        return significand << u32(shift);
    }
    if shift < -9 {
        return 0u;
    }
    let by = u32(-shift);
    let half = (1u << (by - 1u)) - 1u;
    return (significand + half + ((significand >> by) & 1u)) >> by;
}

fn half_pair(pair: u32, power: i32) -> u32 {
    let low = half_of(pair & 0x7fffu, power);
    let high = half_of((pair >> 16u) & 0x7fffu, power);
    return low | (high << 16u) | (pair & 0x80008000u);
}

fn larger(v: vec4<u32>) -> u32 {
    return max(max(v.x, v.y), max(v.z, v.w));
}

// The largest magnitude of eight elements, and the least.
fn largest_in(eight: vec4<u32>) -> u32 {
    return larger(max(eight & vec4(0x7fffu), (eight >> vec4(16u)) & vec4(0x7fffu)));
}

fn least_in(eight: vec4<u32>) -> u32 {
    let least = min(eight & vec4(0x7fffu), (eight >> vec4(16u)) & vec4(0x7fffu));
    return min(min(least.x, least.y), min(least.z, least.w));
}

fn halves_of(eight: vec4<u32>, power: i32, finite: bool) -> vec4<u32> {
    // What an exponent of bf16 loses to become one of f16.
    let lost = 112 - power;
    // Where all stay normal, both elements of a word at once: an exponent is subtracted, three bits added.
    if finite && i32(least_in(eight) >> 7u) > max(lost, 0) {
        let magnitudes = eight & vec4(0x7fff7fffu);
        let less = magnitudes - vec4(bitcast<u32>(lost) * 0x00800080u);
        return (less << vec4(3u)) | (eight & vec4(0x80008000u));
    }
    return vec4(
        half_pair(eight.x, power),
        half_pair(eight.y, power),
        half_pair(eight.z, power),
        half_pair(eight.w, power),
    );
}

@compute @workgroup_size(WORKGROUP)
fn rows_as_f16(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let row = min(group.y * groups.x + group.x, call.rows - 1u);
    let vectors = call.k / 8u;
    let start = call.offset / 8u + row * (call.stride / 8u);
    // The first four vectors stay in registers; beyond the end the last is there again.
    let last = start + vectors - 1u;
    let v0 = input[min(start + local, last)];
    let v1 = input[min(start + local + WORKGROUP, last)];
    let v2 = input[min(start + local + 2u * WORKGROUP, last)];
    let v3 = input[min(start + local + 3u * WORKGROUP, last)];
    var most = max(max(largest_in(v0), largest_in(v1)), max(largest_in(v2), largest_in(v3)));
    for (var v = local + 4u * WORKGROUP; v < vectors; v += WORKGROUP) {
        most = max(most, largest_in(input[start + v]));
    }
    largest[local] = most;
    workgroupBarrier();
    if local < 32u {
        var of_eight = 0u;
        for (var i = 0u; i < WORKGROUP; i += 32u) {
            of_eight = max(of_eight, largest[i + local]);
        }
        largest_of_eight[local] = of_eight;
    }
    workgroupBarrier();
    for (var i = 0u; i < 32u; i++) {
        most = max(most, largest_of_eight[i]);
    }
    // The exponent of the largest: of a subnormal number, that of its leading 1; with an infinity or a NaN
    // 128, under which finite numbers stay finite.
    var exponent = i32(most >> 7u) - 127;
    if most < 0x80u {
        exponent = 31 - i32(countLeadingZeros(max(most, 1u))) - 133;
    }
    let power = 15 - exponent;
    let finite = most < 0x7f80u;
    let to = row * (vectors + 1u);
    if local < vectors {
        output[to + local] = halves_of(v0, power, finite);
    }
    if local + WORKGROUP < vectors {
        output[to + local + WORKGROUP] = halves_of(v1, power, finite);
    }
    if local + 2u * WORKGROUP < vectors {
        output[to + local + 2u * WORKGROUP] = halves_of(v2, power, finite);
    }
    if local + 3u * WORKGROUP < vectors {
        output[to + local + 3u * WORKGROUP] = halves_of(v3, power, finite);
    }
    for (var v = local + 4u * WORKGROUP; v < vectors; v += WORKGROUP) {
        output[to + v] = halves_of(input[start + v], power, finite);
    }
    if local == 0u {
        output[to + vectors] = vec4(pack2x16float(vec2(f32(-power), 0.0)), 0u, 0u, 0u);
    }
}
