// Matmuls of codes by an FP8 weight in rows, on Hopper's FP8 tensor cores, for up to 128 tokens: both in blocks of 128 of k,
// x in groups with a scale each, w in blocks of 128 x 128.
//
// ## Method
// 1. A block has 64 or 128 rows of the weight and up to TOKENS tokens; the two of a cluster share k. Stages are 128 of k,
//    tiles of w and x by tensor maps. The first ones' weights are asked for before the wait for the kernel before: few, as
//    more would hold up its last stores.
// 2. Weights are the 64 rows of a product, tokens its columns, both in shared memory.
// 3. The tensor cores' sums keep about 14 bits; so each 128 of k is summed from zero, multiplied by the scales of its group
//    and block, and added in f32. Scales are multiplied by each other, and left in shared memory, before the first product.
// 4. SETS of warpgroups take the stages in turns, so that one's sums are added while another multiplies.
// 5. Sums are left where the stages were and added up in the order of k: a block of the cluster has its part of them.
#pragma once
#include "matmul.cuh"
#include "wgmma.cuh"
#include "../common/cluster.cuh"
#include "../common/fp8.cuh"

// The twin of `CodesParams` in src/launch/params.rs.
struct CodesParams {
    TensorMap x, w;                   // tiles of 128 codes
    const void* x_scales;
    const float* w_scales;            // [N / 128, scale_columns]
    void* y;
    uint64_t y_stride;                // elements
    uint64_t scale_row, scale_word;   // of x: from row to row, and from word to word
    uint32_t word_log;                // groups in a word: 2^0 or 2^2
    uint32_t power_of_two;            // E8M0 scales of x, else f32
    uint32_t scale_columns;
    uint32_t t, n, k;
    uint32_t rows;                    // of x that a block has: TOKENS at most
    uint32_t y_type;
};
TWIN_SIZE(CodesParams, 384);
TWIN_FIELD(CodesParams, x, 0);
TWIN_FIELD(CodesParams, w, 128);
TWIN_FIELD(CodesParams, x_scales, 256);
TWIN_FIELD(CodesParams, w_scales, 264);
TWIN_FIELD(CodesParams, y, 272);
TWIN_FIELD(CodesParams, y_stride, 280);
TWIN_FIELD(CodesParams, scale_row, 288);
TWIN_FIELD(CodesParams, scale_word, 296);
TWIN_FIELD(CodesParams, word_log, 304);
TWIN_FIELD(CodesParams, power_of_two, 308);
TWIN_FIELD(CodesParams, scale_columns, 312);
TWIN_FIELD(CodesParams, t, 316);
TWIN_FIELD(CodesParams, n, 320);
TWIN_FIELD(CodesParams, k, 324);
TWIN_FIELD(CodesParams, rows, 328);
TWIN_FIELD(CodesParams, y_type, 332);

constexpr uint32_t CODES_K = 128;  // of a stage
constexpr int CODES_BLOCKS = 2;    // of a cluster

// The shape of a block: rows of the weight, 64 to a warpgroup of a set, and tokens.
template <int ROWS, int TOKENS, int SETS, int STAGES> struct CodesShape {
    static constexpr int PARTS = ROWS / 64, WARPS = 4 * PARTS * SETS;
    static constexpr int X = TOKENS * CODES_K, W = ROWS * CODES_K, RING = STAGES * (X + W);
    // Floats from a token's sums to the next one's: those of a warp's stores are in different banks.
    static constexpr int SUMS_STRIDE = ROWS + 4, SUMS = SETS * TOKENS * SUMS_STRIDE * 4;
    static constexpr int BARRIERS = RING > SUMS ? RING : SUMS, SCALES = BARRIERS + 16 * STAGES;
};

// Four sums of a token, from an element of y on.
__device__ __forceinline__ void store_four(const CodesParams& p, uint64_t to, float4 v) {
    if (p.y_type == Y_F32) {
        *(float4*)((float*)p.y + to) = make_float4(narrow<float>(v.x), narrow<float>(v.y), narrow<float>(v.z), narrow<float>(v.w));
    } else {
        const bool half = p.y_type == Y_F16;
        const uint32_t low = half ? narrow2(f16(), v.x, v.y) : narrow2(bf16(), v.x, v.y);
        *(uint2*)((bf16*)p.y + to) = make_uint2(low, half ? narrow2(f16(), v.z, v.w) : narrow2(bf16(), v.z, v.w));
    }
}

// BEFORE: stages whose weights are asked for before the wait.
template <int ROWS, int TOKENS, int SETS, int STAGES, int BEFORE>
__device__ __forceinline__ void multiply_codes(const CodesParams& p) {
    using Shape = CodesShape<ROWS, TOKENS, SETS, STAGES>;
    constexpr int THREADS = 32 * Shape::WARPS, BLOCKS = CODES_BLOCKS;
    static_assert(BEFORE < STAGES);
    // The swizzle is one of addresses.
    extern __shared__ __align__(1024) uint8_t memory[];
    let_next_start();
    const uint32_t base = shared_address(memory), weights = base + STAGES * Shape::X;
    const auto full = [&](uint32_t stage) { return base + Shape::BARRIERS + stage * 8; };
    const auto empty = [&](uint32_t stage) { return full(STAGES + stage); };
    float* const scales = (float*)(memory + Shape::SCALES);  // [stages of k][tokens]
    // The compiler is to see that it is one of a warp.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t units = (p.k + CODES_K - 1) / CODES_K, rank = blockIdx.x % BLOCKS, row0 = blockIdx.x / BLOCKS * ROWS;
    const uint32_t token0 = blockIdx.y * p.rows;
    const uint32_t first = rank * units / BLOCKS, count = (rank + 1) * units / BLOCKS - first;
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (uint32_t i = 0; i < STAGES; ++i) {
            init_barrier(full(i));
            init_barrier(empty(i), 4 * Shape::PARTS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (warp == Shape::WARPS) {
        if (lane == 0) {
            const auto fetch_weights = [&](uint32_t unit, uint32_t stage) {
                expect_bytes(full(stage), p.rows * CODES_K + Shape::W);
                tensor_copy(weights + stage * Shape::W, p.w, (first + unit) * CODES_K, row0, full(stage));
            };
            const auto fetch_x = [&](uint32_t unit, uint32_t stage) {
                tensor_copy(base + stage * Shape::X, p.x, (first + unit) * CODES_K, token0, full(stage));
            };
            const uint32_t before = min((uint32_t)BEFORE, count);
#pragma unroll 1
            for (uint32_t u = 0; u < before; ++u) fetch_weights(u, u);
            wait_for_last();
#pragma unroll 1
            for (uint32_t u = 0; u < before; ++u) fetch_x(u, u);
            // The first round has nothing to wait for: the phase before the first one has ended.
            RingPlace at{before, 1};
            for (uint32_t u = before; u < count; ++u, at.advance(STAGES)) {
                wait_barrier<false>(empty(at.stage), at.parity);
                fetch_weights(u, at.stage), fetch_x(u, at.stage);
            }
        }
        __syncwarp();
        sync_cluster(), meet_cluster();
        return;
    }
    const auto sync_block = [] { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); };
    // Those of the weight before the wait: they come from far away.
    float* const of_weight = scales + count * TOKENS;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        of_weight[i] = p.w_scales[row0 / 128 * p.scale_columns + first + i];
    }
    sync_block();
    wait_for_last();
    const uint32_t entries = count * TOKENS;
#pragma unroll 1
    for (uint32_t i0 = threadIdx.x; i0 < entries; i0 += 4 * THREADS) {
        uint32_t raw[4];
        // All are on their way at once.
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint32_t i = min(i0 + j * THREADS, entries - 1), group = first + i / TOKENS;
            const uint64_t at = min(token0 + i % TOKENS, p.t - 1) * p.scale_row + (group >> p.word_log) * p.scale_word
                + (group & ((1u << p.word_log) - 1));
            raw[j] = p.power_of_two ? (uint32_t)((const uint8_t*)p.x_scales)[at] : ((const uint32_t*)p.x_scales)[at];
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint32_t i = i0 + j * THREADS;
            if (i >= entries) break;
            scales[i] = (p.power_of_two ? power(raw[j]) : __uint_as_float(raw[j])) * of_weight[i / TOKENS];
        }
    }
    sync_block();
    const uint32_t set = warp / (4 * Shape::PARTS), of_row = warp / 4 % Shape::PARTS * 64;
    const uint64_t w = describe_rows(weights + of_row * CODES_K), x = describe_rows(base);
    const uint32_t g = lane / 4, q = lane % 4;
    float sum[TOKENS / 2] = {};
    RingPlace at{set};
    for (uint32_t unit = set; unit < count; unit += SETS) {
        wait_barrier<false>(full(at.stage), at.parity);
        float product[TOKENS / 2];
        begin_products();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            multiply_codes_warpgroup<TOKENS>(
                product, w + at.stage * (Shape::W / 16) + j * 2, x + at.stage * (Shape::X / 16) + j * 2, j > 0);
        }
        end_group();
        const float2* const of_unit = (const float2*)(scales + unit * TOKENS) + q;
        wait_for_groups<0>();
        if (lane == 0) arrive(empty(at.stage));
#pragma unroll
        for (int t = 0; t < TOKENS / 8; ++t) {
            const float2 scale = of_unit[4 * t];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                sum[4 * t + e] = fmaf(product[4 * t + e], e % 2 ? scale.y : scale.x, sum[4 * t + e]);
            }
        }
        at.advance(STAGES, SETS);
    }
    // No product reads a stage any longer.
    sync_block();
    float* const mine = (float*)memory + (set * TOKENS + 2 * q) * Shape::SUMS_STRIDE + of_row + warp % 4 * 16 + g;
#pragma unroll
    for (int t = 0; t < TOKENS / 8; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            mine[(8 * t + e % 2) * Shape::SUMS_STRIDE + e / 2 * 8] = sum[4 * t + e];
        }
    }
    sync_cluster();
    uint32_t blocks[BLOCKS];
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) blocks[b] = in_block(base, b);
    // Four rows of a token at a time.
    constexpr uint32_t FOURS = ROWS / 4;
    const uint32_t tokens = min(p.rows, p.t - token0), all = tokens * FOURS, end = (rank + 1) * all / BLOCKS;
#pragma unroll 1
    for (uint32_t o = rank * all / BLOCKS + threadIdx.x; o < end; o += THREADS) {
        const uint32_t token = o / FOURS, row = row0 + o % FOURS * 4;
        const uint32_t at = (token * Shape::SUMS_STRIDE + o % FOURS * 4) * 4;
        if (row >= p.n) continue;
        float4 parts[BLOCKS * SETS];
#pragma unroll
        for (int i = 0; i < BLOCKS * SETS; ++i) {
            const uint32_t from = blocks[i / SETS] + i % SETS * (TOKENS * Shape::SUMS_STRIDE * 4) + at;
            asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                : "=f"(parts[i].x), "=f"(parts[i].y), "=f"(parts[i].z), "=f"(parts[i].w) : "r"(from) : "memory");
        }
        float4 v = parts[0];
#pragma unroll
        for (int i = 1; i < BLOCKS * SETS; ++i) v.x += parts[i].x, v.y += parts[i].y, v.z += parts[i].z, v.w += parts[i].w;
        store_four(p, (token0 + token) * p.y_stride + row, v);
    }
    // No block leaves while another reads its sums: what has been stored depends on them.
    __syncwarp();
    meet_cluster();
}
