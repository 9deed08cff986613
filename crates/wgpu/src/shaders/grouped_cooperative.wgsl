// Many rows of an expert by its weights in FP4, on matrices that a subgroup holds together.
//
// ## Method
// 1. Tiles and steps are those of `matmul_cooperative.wgsl`: codes times scales become f16s. `top_scale` is the
//    greatest byte of scales: its power of two becomes 2^13, which takes the largest code to 49152. Scales 2^36 below
//    it still leave every code a multiple of f16's least number.
// 2. Rows of x are gathered by the item's routes, in the first half; they are f16s that end with their exponent.
// 3. In the first half a gate and its up are neighbours in a tile, so that one invocation has both when sums leave.
//    They leave one matrix of each subgroup after another in a loop: drivers would compile many copies of the activation.
//
// Marks are as there.

@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;

fn top_scale() -> u32 {
    return call.block_cols;
}

// What codes are multiplied by in place of the scale of a row's vector; they are 2^-14 of their value.
fn factor_at(key: u32, v: u32) -> f32 {
    let at = key + v;
    let byte = (scales[at >> 2u] >> ((at & 3u) << 3u)) & 0xffu;
    return bitcast<f32>((byte + 154u - top_scale()) << 23u);
}

// The eight codes of a word, as `weight/codes.rs` has arranged them. f16 has no number as large as a factor: the first
// product makes codes of f16's least numbers ordinary ones. Both are exact.
fn keep_eight(at: u32, codes: u32, by: f16) {
    let a = vec2<f16>(unpack2x16float(codes & 0x8e008e00u));
    let b = vec2<f16>(unpack2x16float((codes << 3u) & 0x8e008e00u));
    let c = vec2<f16>(unpack2x16float(((codes & 0x40384038u) * 66u) & 0x8e008e00u));
    let d = vec2<f16>(unpack2x16float(((codes & 0x20072007u) * 516u) & 0x8e008e00u));
    w_tile[at] = (vec4<f16>(a.x, b.x, c.x, d.x) * 4096.0h) * by;
    w_tile[at + 1u] = (vec4<f16>(a.y, b.y, c.y, d.y) * 4096.0h) * by;
}

fn keep(at: u32, raw: vec4<u32>, factor: f32, inside: bool) {
    let by = f16(select(0.0, factor / 4096.0, inside));
    keep_eight(at, raw.x, by);
    keep_eight(at + 2u, raw.y, by);
    keep_eight(at + 4u, raw.z, by);
    keep_eight(at + 6u, raw.w, by);
}

// What is staged: of each subgroup the matrix that begins so many tokens and rows after its first.
fn put(at: vec2<u32>, first: u32, local: u32) {
    for (var four = local; four < PARTS * 64u; four += INVOCATIONS) {
        let part = four / 64u;
        let own = at + vec2(part % ACROSS * MATRICES_ACROSS, part / ACROSS * MATRICES_DOWN) * 16u
            + vec2(four % 4u * 4u, four / 4u % 16u);
        var sums = vec4(0.0);
        for (var slice = 0u; slice < SLICES; slice++) {
            let start = (slice * PARTS * 64u + four) * 4u;
            sums += vec4(staged[start], staged[start + 1u], staged[start + 2u], staged[start + 3u]);
        }
        let n = own.y;
        if !is_inside(n) {
            continue;
        }
        let exponent = token_exponents[n] + i32(top_scale()) - 140;
        sums = vec4(
            scale(sums.x, exponent),
            scale(sums.y, exponent),
            scale(sums.z, exponent),
            scale(sums.w, exponent),
        );
        if GATED {
            var both = vec2(0u);
            for (var i = 0u; i < 2u; i++) {
                both[i] = activated(sums[2u * i], sums[2u * i + 1u], weight_of(n));
            }
            let col = first + own.x / 2u;
            if col < call.cols {
                store_pair(n, col, both);
            }
        } else {
            for (var i = 0u; i < 2u; i++) {
                let col = first + own.x + 2u * i;
                if col < call.cols {
                    store_pair(n, col, vec2(narrow_bf16(sums[2u * i]), narrow_bf16(sums[2u * i + 1u])));
                }
            }
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn grouped_cooperative(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    if !take_item(group.z * groups.y + group.y, local) {
        return;
    }
    enter(local);
    let first = group.x * OUTPUTS;
    let last = item.count - 1u;
    let k = call.k;
    let w_stride = call.row_vectors;
    for (var i = local; i < TILE_TOKENS; i += INVOCATIONS) {
        token_exponents[i] = i32(x[(x_start(min(i, last)) + k) / 4u].x);
    }
#places
    let x_from#x = x_start(min(x_own + #xu * X_LINES, last)) / 4u;
    let w_row#w = tile_row(first, w_own + #wu * W_LINES);
    let w_from#w = w_row#w * w_stride;
    let key#w = scale_start(w_row#w);
#steps
    // A bound that is no constant: a loop that is unrolled would be copies again.
    let count = min(MATRICES_DOWN * MATRICES_ACROSS, k);
    for (var n = 0u; n < count; n++) {
        workgroupBarrier();
        switch n {
#stage
            default: {}
        }
        workgroupBarrier();
        put(vec2(n % MATRICES_ACROSS, n / MATRICES_ACROSS) * 16u, first, local);
    }
}

// The weight's row at a line of a tile.
fn tile_row(first: u32, line: u32) -> u32 {
    if GATED {
        return weight_row(line % 2u, first + line / 2u);
    }
    return weight_row(0u, first + line);
}
