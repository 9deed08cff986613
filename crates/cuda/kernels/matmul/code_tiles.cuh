// Matmuls of codes by an FP8 weight in rows, on Hopper's FP8 tensor cores, for more tokens than codes.cuh has: both in
// blocks of 128 of k, x in groups with a scale each, w in blocks of 128 x 128. Also of a gate and its up half, with the
// activation and the quantization of what it gives.
//
// ## Method
// 1. Tokens are the 64 rows of a product, 128 rows of the weight its columns, both in shared memory, 128 of k a stage.
//    How often shared memory is read and written decides the speed: so a thread has the scales of two tokens, not of the
//    columns of codes.cuh, where they take as long to read as the operands.
// 2. The tensor cores' sums keep about 14 bits; so each 128 of k is summed from zero, multiplied by the scales of its
//    group and block, and added in f32. Of 64 tokens two warpgroups take the stages in turns, of 128 a half each.
// 3. No blocks share k: what their sums take to get from one to another is more than tiles of half the size cost.
// 4. Few stages of weights are asked for before the wait for the kernel before: more would hold up its last stores.
// 5. Of a gate and its up half a map brings eight rows of each together. A block has 64 pairs, and the two of a cluster
//    a group of 128: they tell each other the largest magnitudes of their tokens.
#pragma once
#include "codes.cuh"
#include "../activation/functions.cuh"

// The twin of `CodeTilesParams` in src/launch/params.rs.
struct CodeTilesParams {
    CodesParams codes;
    // Of what a gate and its up half give, whose codes are y.
    void* y_scales;        // E8M0
    uint64_t y_scale_row, y_scale_word;
    uint32_t y_word_log;
    uint32_t gated;
    uint32_t up_scales;    // from the scales of the gate's rows to those of the up half's
    float floor;           // the least amax of a group
    Scalars scalars;
};
TWIN_SIZE(CodeTilesParams, 448);
TWIN_FIELD(CodeTilesParams, codes, 0);
TWIN_FIELD(CodeTilesParams, y_scales, 384);
TWIN_FIELD(CodeTilesParams, y_scale_row, 392);
TWIN_FIELD(CodeTilesParams, y_scale_word, 400);
TWIN_FIELD(CodeTilesParams, y_word_log, 408);
TWIN_FIELD(CodeTilesParams, gated, 412);
TWIN_FIELD(CodeTilesParams, up_scales, 416);
TWIN_FIELD(CodeTilesParams, floor, 420);
TWIN_FIELD(CodeTilesParams, scalars, 424);

// The shape of a block of 64 or 128 tokens.
template <int TOKENS_, int STAGES> struct CodeTilesShape {
    static constexpr int TOKENS = TOKENS_, ROWS = 128, SETS = TOKENS == 64 ? 2 : 1, SET = TOKENS / 16, WARPS = SET * SETS;
    static constexpr int X = TOKENS * CODES_K, W = ROWS * CODES_K, RING = STAGES * (X + W);
    // Floats from a token's sums to the next one's: those of half a warp's stores are in different banks.
    static constexpr int STRIDE = ROWS + 8, SUMS = SETS * TOKENS * STRIDE * 4;
    static constexpr int BARRIERS = RING > SUMS ? RING : SUMS, LARGEST = BARRIERS + 16 * STAGES + 16;
    // Floats from a stage's scales to the next one's: those of a token are in different banks.
    static constexpr int SCALES = LARGEST + TOKENS * 4, SCALES_STRIDE = TOKENS + 1;
};

// Groups of eight rows and eight others, 128 of k.
__device__ __forceinline__ void copy_code_groups(
    uint32_t to, const TensorMap& map, uint32_t k, uint32_t group, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %3, %4}], [%5];" ::"r"(to), "l"(&map), "r"(k), "r"(0), "r"(group), "r"(barrier) : "memory");
}
// A word to another block of the cluster, whose barrier counts its bytes.
__device__ __forceinline__ void send(uint32_t to, uint32_t word, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
        ::"r"(to), "r"(word), "r"(barrier) : "memory");
}

// What is hardly ever needed is out of line: an instruction that runs once comes from far away.
__device__ __noinline__ void activate_wide(float (&y)[4], const float (&gate)[4], const float (&up)[4], const Scalars& s) {
#pragma unroll 1
    for (int i = 0; i < 4; ++i) y[i] = gated_wide<Silu, Clamp::Before, bf16>(gate[i], up[i], s);
}
// Four activations of sums rounded to bf16, as two pairs of bf16. Without a clamp the limit is infinite.
__device__ __forceinline__ uint2 activate_four(const Scalars& s, float4 g, float4 u) {
    const float gate[4] = {rounded<bf16>(g.x), rounded<bf16>(g.y), rounded<bf16>(g.z), rounded<bf16>(g.w)};
    const float up[4] = {rounded<bf16>(u.x), rounded<bf16>(u.y), rounded<bf16>(u.z), rounded<bf16>(u.w)};
    float y[4];
    bool lost = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) y[i] = gated_or_lost<Silu, Clamp::Before, bf16, false>(gate[i], up[i], s, lost);
    if (lost) {
        // Through local memory, and only here.
        float all[4], gates[4], ups[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) gates[i] = gate[i], ups[i] = up[i];
        activate_wide(all, gates, ups, s);
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = all[i];
    }
    return make_uint2(narrow2(bf16(), y[0], y[1]), narrow2(bf16(), y[2], y[3]));
}

// A block's sums of a token, of four rows of the weight from `row` on, as its memory has them.
template <class Shape> __device__ __forceinline__ float4 four_sums(const uint8_t* memory, uint32_t token, uint32_t row) {
    const float* const from = (const float*)memory + token * Shape::STRIDE + row;
    float4 v = *(const float4*)from;
    if constexpr (Shape::SETS == 2) {
        const float4 next = *(const float4*)(from + Shape::TOKENS * Shape::STRIDE);
        v.x += next.x, v.y += next.y, v.z += next.z, v.w += next.w;
    }
    return v;
}

// Sixteen threads have a token's rows. Loops are short: what runs once comes from far away, an instruction line after another.
template <class Shape>
__device__ __forceinline__ void store_codes(
    const CodeTilesParams& params, uint8_t* memory, uint32_t token0, uint32_t tokens, uint32_t compared) {
    constexpr uint32_t STEP = 2 * Shape::WARPS, STEPS = Shape::TOKENS / STEP;
    const CodesParams& p = params.codes;
    const uint32_t of_thread = threadIdx.x / 16, part = threadIdx.x % 16, rank = blockIdx.x % 2, other = 1 - rank;
    const uint32_t n = blockIdx.x * (Shape::ROWS / 2) + part * 4;
    const uint32_t* const theirs = (const uint32_t*)(memory + Shape::LARGEST);
    // Activations, and their token's largest magnitude, take the place of this thread's sums of the gate.
    const auto place = [&](uint32_t token) { return (uint4*)(memory + (token * Shape::STRIDE + part * 4) * 4); };
#pragma unroll 2
    for (uint32_t i = 0; i < STEPS; ++i) {
        const uint32_t token = i * STEP + of_thread;
        const float4 gates = four_sums<Shape>(memory, token, part * 4);
        const uint2 act = activate_four(params.scalars, gates, four_sums<Shape>(memory, token, Shape::ROWS / 2 + part * 4));
        const uint32_t m = 0x7fff7fffu, both = __vmaxu2(act.x & m, act.y & m);
        uint32_t top = max(both << 16, both & 0xffff0000u);
#pragma unroll
        for (int distance = 1; distance < 16; distance *= 2) top = max(top, __shfl_xor_sync(~0u, top, distance));
        if (part == 0) send(in_block(shared_address(theirs + token), other), top, in_block(compared, other));
        *place(token) = make_uint4(act.x, act.y, top, 0);
    }
    wait_barrier<false>(compared, 0);
#pragma unroll 2
    for (uint32_t i = 0; i < STEPS; ++i) {
        const uint32_t token = i * STEP + of_thread;
        const uint4 act = *place(token);
        const uint32_t upper = 0xffff0000u;
        // As an integer a NaN is larger than any number.
        const uint32_t byte = power_of_two_scale(max(max(act.z, theirs[token]), __float_as_uint(params.floor)));
        const float inverse = inverse_power(byte);
        const float y[4] = {__uint_as_float(act.x << 16) * inverse, __uint_as_float(act.x & upper) * inverse,
            __uint_as_float(act.y << 16) * inverse, __uint_as_float(act.y & upper) * inverse};
        if (token >= tokens || n >= p.n / 2) continue;
        *(uint32_t*)((uint8_t*)p.y + (token0 + token) * p.y_stride + n) = encode4(y);
        if (part != 0 || rank != 0) continue;
        const uint32_t group = n / 128, words = 1u << params.y_word_log;
        uint8_t* scale = (uint8_t*)params.y_scales + (token0 + token) * params.y_scale_row
            + (group >> params.y_word_log) * params.y_scale_word + (group & (words - 1));
        *scale = (uint8_t)byte;
        // A word is filled up with zeros after the last group.
        if ((group + 1) * 128 >= p.n / 2) {
#pragma unroll 1
            for (uint32_t g = group + 1; g % words != 0; ++g) *++scale = 0;
        }
    }
}
template <class Shape>
__device__ __forceinline__ void store_sums(const CodesParams& p, const uint8_t* memory, uint32_t token0, uint32_t tokens) {
    constexpr uint32_t STEP = Shape::WARPS;
#pragma unroll 2
    for (uint32_t i = 0; i < Shape::TOKENS / STEP; ++i) {
        const uint32_t token = i * STEP + threadIdx.x / 32, row = threadIdx.x % 32 * 4;
        const uint32_t n = blockIdx.x * Shape::ROWS + row;
        const float4 v = four_sums<Shape>(memory, token, row);
        if (token < tokens && n < p.n) store_four(p, (token0 + token) * p.y_stride + n, v);
    }
}

// BEFORE: stages whose weights are asked for before the wait.
template <int TOKENS, int STAGES, int BEFORE>
__device__ __forceinline__ void multiply_code_tiles(const CodeTilesParams& params) {
    using Shape = CodeTilesShape<TOKENS, STAGES>;
    constexpr int THREADS = 32 * Shape::WARPS, N = Shape::ROWS, SETS = Shape::SETS;
    static_assert(BEFORE < STAGES);
    // The swizzle is one of addresses.
    extern __shared__ __align__(1024) uint8_t memory[];
    let_next_start();
    const CodesParams& p = params.codes;
    const uint32_t base = shared_address(memory), weights = base + STAGES * Shape::X;
    const auto full = [&](uint32_t stage) { return base + Shape::BARRIERS + stage * 8; };
    const auto empty = [&](uint32_t stage) { return full(STAGES + stage); };
    const uint32_t compared = full(2 * STAGES);
    // The compiler is to see that it is one of a warp.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t units = (p.k + CODES_K - 1) / CODES_K, row0 = blockIdx.x * Shape::ROWS, token0 = blockIdx.y * p.rows;
    // Of each stage of k: the gate's and the up half's, and those of tokens.
    float2* const of_weight = (float2*)(memory + Shape::SCALES);
    float* const scales = (float*)(of_weight + units);
    if (threadIdx.x == THREADS) {
#pragma unroll 1
        for (uint32_t i = 0; i < STAGES; ++i) {
            init_barrier(full(i));
            init_barrier(empty(i), Shape::SET);
        }
        init_barrier(compared);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        expect_bytes(compared, TOKENS * 4);
    }
    if (warp == Shape::WARPS) {
        __syncwarp();
        // Barriers are there, also of the other block.
        meet_cluster();
        if (lane == 0) {
            const auto fetch_weights = [&](uint32_t unit, uint32_t stage) {
                const uint32_t to = weights + stage * Shape::W;
                expect_bytes(full(stage), p.rows * CODES_K + Shape::W);
                if (params.gated) copy_code_groups(to, p.w, unit * CODES_K, row0 / 16, full(stage));
                else tensor_copy(to, p.w, unit * CODES_K, row0, full(stage));
            };
            const auto fetch_x = [&](uint32_t unit, uint32_t stage) {
                tensor_copy(base + stage * Shape::X, p.x, unit * CODES_K, token0, full(stage));
            };
            const uint32_t before = min((uint32_t)BEFORE, units);
#pragma unroll 1
            for (uint32_t u = 0; u < before; ++u) fetch_weights(u, u);
            wait_for_last();
#pragma unroll 1
            for (uint32_t u = 0; u < before; ++u) fetch_x(u, u);
            // The first round has nothing to wait for: the phase before the first one has ended.
            RingPlace at{before, 1};
            for (uint32_t u = before; u < units; ++u, at.advance(STAGES)) {
                wait_barrier<false>(empty(at.stage), at.parity);
                fetch_weights(u, at.stage), fetch_x(u, at.stage);
            }
        }
        __syncwarp();
        meet_cluster();
        return;
    }
    const auto sync_block = [] { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); };
    const uint32_t first_row = params.gated ? row0 / 2 : row0, last_row = (params.gated ? p.n / 2 : p.n) - 1;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < units; i += THREADS) {
        // The second block of a cluster may have no rows.
        const float* const from = p.w_scales + min(first_row, last_row) / 128 * p.scale_columns + i;
        of_weight[i] = make_float2(from[0], from[params.up_scales]);
    }
    meet_cluster();
    wait_for_last();
#pragma unroll 1
    for (uint32_t unit = lane; unit < units; unit += 32) {
        const uint64_t at = (unit >> p.word_log) * p.scale_word + (unit & ((1u << p.word_log) - 1));
        constexpr int MANY = 8;
#pragma unroll 1
        for (uint32_t token = warp; token < TOKENS; token += MANY * Shape::WARPS) {
            uint32_t raw[MANY];
            // All are on their way at once.
#pragma unroll
            for (int i = 0; i < MANY; ++i) {
                const uint64_t from = min(token0 + token + i * Shape::WARPS, p.t - 1) * p.scale_row + at;
                raw[i] = p.power_of_two ? (uint32_t)((const uint8_t*)p.x_scales)[from] : ((const uint32_t*)p.x_scales)[from];
            }
#pragma unroll
            for (int i = 0; i < MANY; ++i) {
                const float scale = p.power_of_two ? power(raw[i]) : __uint_as_float(raw[i]);
                scales[unit * Shape::SCALES_STRIDE + token + i * Shape::WARPS] = scale;
            }
        }
    }
    sync_block();
    const uint32_t set = warp / Shape::SET, of_warp = warp % Shape::SET * 16, g = lane / 4, q = lane % 4;
    const uint64_t x = describe_rows(base + of_warp / 64 * (64 * CODES_K)), w = describe_rows(weights);
    const float* const of_tokens = scales + of_warp + g;
    float sum[N / 2] = {};
    RingPlace at{set};
    for (uint32_t unit = set; unit < units; unit += SETS) {
        wait_barrier<false>(full(at.stage), at.parity);
        float product[N / 2];
        begin_products();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            multiply_codes_warpgroup<N>(
                product, x + at.stage * (Shape::X / 16) + j * 2, w + at.stage * (Shape::W / 16) + j * 2, j > 0);
        }
        end_group();
        const float low = of_tokens[unit * Shape::SCALES_STRIDE], high = of_tokens[unit * Shape::SCALES_STRIDE + 8];
        const float2 by = of_weight[unit];
        // Eights of a gate's rows and of its up half's take turns.
        const float scale[2][2] = {{low * by.x, high * by.x}, {low * by.y, high * by.y}};
        wait_for_groups<0>();
        if (lane == 0) arrive(empty(at.stage));
#pragma unroll
        for (int t = 0; t < N / 8; ++t) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[4 * t + e] = fmaf(product[4 * t + e], scale[t % 2][e / 2], sum[4 * t + e]);
        }
        at.advance(STAGES, SETS);
    }
    // No product reads a stage any longer, and no copy is on its way to one.
    sync_block();
    // The gate's come first, then the up half's.
    float* const to = (float*)memory + (set * TOKENS + of_warp + g) * Shape::STRIDE + 2 * q;
    const uint32_t next = params.gated ? 8 : 16, odd = params.gated ? N / 2 : 8;
#pragma unroll
    for (int t = 0; t < N / 8; ++t) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            *(float2*)(to + h * 8 * Shape::STRIDE + t / 2 * next + t % 2 * odd) = make_float2(sum[4 * t + 2 * h], sum[4 * t + 2 * h + 1]);
        }
    }
    sync_block();
    const uint32_t tokens = min(p.rows, p.t - token0);
    if (params.gated) store_codes<Shape>(params, memory, token0, tokens, compared);
    else store_sums<Shape>(p, memory, token0, tokens);
    // No block leaves while the other may still send to it.
    __syncwarp();
    meet_cluster();
}
