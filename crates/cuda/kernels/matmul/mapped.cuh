// Matmuls of some tokens by a weight in bf16 as it is stored, in rows, on Hopper.
//
// ## Method
// 1. Tensor maps copy both matrices, 64 of k at a time, swizzled as wgmma reads them: weights are the 64 rows of a
//    product, tokens its columns, both in shared memory. No thread has a part in either.
// 2. A group is sixteen rows of the weight: 16 following ones, or 8 of the gate and the matching 8 of the up half,
//    which the map brings together, so that both sums of a pair are one thread's. A tile is a group a warp.
// 3. The blocks of a cluster share k.
// 4. Weights are asked for before the wait for the kernel before, as many stages as there are; x comes after it. Of few
//    tokens two blocks fit a multiprocessor, and the next kernel may start when this one has asked for most of its
//    weights: its own come while this one's sums are added up, and not before this one's.
// 5. A block sends its sums to those of the cluster that own them, which add them up in the order of k, and store or
//    activate them. No barrier of the cluster orders memory: that would wait for all that is on its way.
#pragma once
#include "step.cuh"
#include "../common/cluster.cuh"
#include "wgmma_shared.cuh"

// The twin of `MappedParams` in src/launch/params.rs.
struct MappedParams {
    TensorMap weight, x;
    StepParams step;       // w and x are the maps'; streams are tiles
    uint32_t tile_groups;  // of a tile, at most a warp's each
    uint32_t parts_log;    // of the parts of k, which are blocks of a cluster, to the base of 2
    uint32_t stages;
    uint32_t ahead;        // stages not asked for yet when the next kernel may start
    uint32_t gated;
    uint32_t tile_tokens;
};
TWIN_SIZE(MappedParams, 384);
TWIN_FIELD(MappedParams, weight, 0);
TWIN_FIELD(MappedParams, x, 128);
TWIN_FIELD(MappedParams, step, 256);
TWIN_FIELD(MappedParams, tile_groups, 352);
TWIN_FIELD(MappedParams, parts_log, 356);
TWIN_FIELD(MappedParams, stages, 360);
TWIN_FIELD(MappedParams, ahead, 364);
TWIN_FIELD(MappedParams, gated, 368);
TWIN_FIELD(MappedParams, tile_tokens, 372);

// Groups from one on, as many as the map has, of 64 of k; the L2 lets go of them first, as of those of `bulk_copy`.
__device__ __forceinline__ void copy_groups(
    uint32_t to, const TensorMap& map, uint32_t k, uint32_t group, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3, %3, %4}], [%5], %6;"
        ::"r"(to), "l"(&map), "r"(k), "r"(0), "r"(group), "r"(barrier), "l"(EVICT_FIRST) : "memory");
}
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
__device__ constexpr uint32_t log2_of(uint32_t n) { return n > 1 ? 1 + log2_of(n / 2) : 0; }

// So many bytes of a vector of 16.
template <int BYTES> __device__ __forceinline__ void store_bytes(void* to, const uint32_t (&words)[4]) {
    if constexpr (BYTES == 2) *(uint16_t*)to = (uint16_t)words[0];
    else if constexpr (BYTES == 4) *(uint32_t*)to = words[0];
    else if constexpr (BYTES == 8) *(uint2*)to = make_uint2(words[0], words[1]);
    else *(uint4*)to = make_uint4(words[0], words[1], words[2], words[3]);
}

// Adds up a block's part of the sums, in the order of k, and stores or activates them. A thread takes following rows of two
// tokens, whose outputs it stores as a vector.
template <int WARPS, int TOKENS>
__device__ __forceinline__ void store_sums(
    const MappedParams& params, const float4* sums, uint32_t part, uint32_t group0, uint32_t token0) {
    constexpr uint32_t LANE_SUMS = TOKENS / 8, THREADS = 32 * WARPS, ROWS = TOKENS < 32 ? 1 : TOKENS / 16;
    StepParams p = params.step;
    // No token of the next tile.
    p.t = min(p.t, token0 + params.tile_tokens);
    const uint32_t parts = 1 << params.parts_log, piece = THREADS * LANE_SUMS >> params.parts_log;
    const bool aligned = (((uintptr_t)p.y | 2 * p.y_stride) & 2 * ROWS - 1) == 0;
    const bool quick = p.y_type == Y_BF16 && !p.eager && aligned;
    Scalars scalars = p.scalars;
    if (!p.clamped) scalars.limit = __int_as_float(0x7f800000);
    const auto add = [](float4& v, float4 next) { v.x += next.x, v.y += next.y, v.z += next.z, v.w += next.w; };
#pragma unroll 1
    for (uint32_t of = threadIdx.x; of < piece / ROWS; of += THREADS) {
        const uint32_t at = of / (32 / ROWS) * 32 + of / 4 % (8 / ROWS) * (4 * ROWS) + of % 4, o = part * piece + at;
        const uint32_t of_warp = o / 32 / LANE_SUMS, group = group0 + of_warp;
        const uint32_t token = token0 + o / 32 % LANE_SUMS * 8 + o % 4 * 2;
        if (of_warp >= params.tile_groups || group >= p.packing.groups || token >= p.t) continue;
        const uint32_t row = packed_row(p.packing, group, o / 4 % 8);
        // Those that are to be stored one by one: all, or those whose gate's value f32 loses. Two bits for each row.
        uint32_t left = (1 << 2 * ROWS) - 1;
        if (quick) {
            left = 0;
            // Neighbours begin at rows of their own, so that they meet in no bank.
            const uint32_t turned = ROWS > 1 ? of / 4 & 1 : 0;
            float4 v[ROWS];
#pragma unroll
            for (uint32_t j = 0; j < ROWS; ++j) v[j] = sums[at + 4 * (j ^ turned)];
#pragma unroll 1
            for (uint32_t i = 1; i < parts; ++i) {
#pragma unroll
                for (uint32_t j = 0; j < ROWS; ++j) add(v[j], sums[i * piece + at + 4 * (j ^ turned)]);
            }
            if (params.gated) {
#pragma unroll
                for (uint32_t j = 0; j < ROWS; ++j) {
                    bool lost[2] = {};
                    round_pair<bf16>(v[j].x, v[j].y), round_pair<bf16>(v[j].z, v[j].w);
                    v[j].x = gated_or_lost<Silu, Clamp::Before, bf16, false>(v[j].x, v[j].z, scalars, lost[0]);
                    v[j].y = gated_or_lost<Silu, Clamp::Before, bf16, false>(v[j].y, v[j].w, scalars, lost[1]);
                    left |= ((uint32_t)lost[0] | (uint32_t)lost[1] << 1) << 2 * (j ^ turned);
                }
            }
            // Of both tokens, rows g and rows g + 8.
            uint32_t words[4][4];
#pragma unroll
            for (uint32_t j = 0; j < ROWS; j += 2) {
                const float4 a = v[j], b = ROWS > 1 ? v[j + 1] : a;
                const uint32_t order = turned ? 0x1032 : 0x3210;
                words[0][j / 2] = __byte_perm(narrow2(bf16(), a.x, b.x), 0, order);
                words[1][j / 2] = __byte_perm(narrow2(bf16(), a.y, b.y), 0, order);
                words[2][j / 2] = __byte_perm(narrow2(bf16(), a.z, b.z), 0, order);
                words[3][j / 2] = __byte_perm(narrow2(bf16(), a.w, b.w), 0, order);
            }
            bf16* const y = (bf16*)p.y + token * p.y_stride + row;
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                if (token + i >= p.t) continue;
                store_bytes<2 * ROWS>(y + i * p.y_stride, words[i]);
                if (!params.gated) store_bytes<2 * ROWS>(y + i * p.y_stride + p.packing.half_rows, words[2 + i]);
            }
        }
#pragma unroll 1
        for (; left; left &= left - 1) {
            const uint32_t i = __ffs(left) - 1, j = i / 2;
            float4 v = sums[at + 4 * j];
            for (uint32_t i = 1; i < parts; ++i) add(v, sums[i * piece + at + 4 * j]);
            const float low = i % 2 ? v.y : v.x, high = i % 2 ? v.w : v.z;
            if (p.y_type == Y_BF16) {
                if (params.gated) store_rows<true, bf16>(p, row + j, token + i % 2, low, high);
                else store_rows<false, bf16>(p, row + j, token + i % 2, low, high);
            } else {
                if (params.gated) store_rows<true, float>(p, row + j, token + i % 2, low, high);
                else store_rows<false, float>(p, row + j, token + i % 2, low, high);
            }
        }
    }
}

// WARPS multiply, four or eight, and one copies.
template <typename T, int WARPS, int TOKENS> __device__ __forceinline__ void mapped(const MappedParams& params) {
    constexpr uint32_t TILE = WARPS * 16 * 2 * UNIT_K, X = TOKENS * 2 * UNIT_K;
    constexpr uint32_t LANE_SUMS = TOKENS / 8, SUMS = WARPS * 32 * LANE_SUMS;  // float4s
    // The swizzle is one of addresses.
    extern __shared__ __align__(1024) uint8_t memory[];
    const StepParams& p = params.step;
    const uint32_t stages = params.stages, parts_log = params.parts_log;
    const uint32_t base = shared_address(memory), weights = base + stages * X;
    const uint32_t sums = stages * (X + TILE), barriers = base + sums + SUMS * 16;
    const auto full = [&](uint32_t stage) { return barriers + stage * 8; };
    const auto empty = [&](uint32_t stage) { return barriers + (stages + stage) * 8; };
    const uint32_t summed = barriers + 2 * stages * 8;
    // The compiler is to see that it is one of a warp.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t part = blockIdx.x & (1 << parts_log) - 1;
    const uint32_t group0 = (blockIdx.x >> parts_log) * params.tile_groups, token0 = blockIdx.y * params.tile_tokens;
    const uint32_t units = (p.k + UNIT_K - 1) / UNIT_K;
    const uint32_t first = part * units >> parts_log, count = ((part + 1) * units >> parts_log) - first;
    // Of the sums, those that each block of the cluster adds up.
    const uint32_t piece_log = log2_of(SUMS) - parts_log, piece = 1 << piece_log;
    if (warp == WARPS) {
        const uint32_t bytes = (params.tile_groups * 16 + params.tile_tokens) * 2 * UNIT_K, before = min(stages, count);
        const auto fetch_weights = [&](uint32_t unit, uint32_t stage) {
            expect_bytes(full(stage), bytes);
            copy_groups(weights + stage * TILE, params.weight, (first + unit) * UNIT_K, group0, full(stage));
            // Of the stages before x the last one, or one of the later ones.
            if (unit + 1 == max(before, count - min(count, params.ahead))) let_next_start();
        };
        const auto fetch_x = [&](uint32_t unit, uint32_t stage) {
            tensor_copy(base + stage * X, params.x, (first + unit) * UNIT_K, token0, full(stage));
        };
        // One thread's, as those of several take turns.
        if (lane == 0) {
            prefetch_map(params.weight);
            for (uint32_t i = 0; i < stages; ++i) init_barrier(full(i));
            init_barrier(summed, 1 + WARPS);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncwarp();
        arrive_at_cluster();
        if (lane == 0) {
            for (uint32_t u = 0; u < before; ++u) fetch_weights(u, u);
            expect_bytes(summed, (SUMS - piece) * 16);
            prefetch_map(params.x);
        }
        __syncwarp();
        wait_for_cluster();
        if (lane == 0) {
            wait_for_last();
            for (uint32_t u = 0; u < before; ++u) fetch_x(u, u);
            RingPlace at;
            for (uint32_t u = stages; u < count; ++u, at.advance(stages)) {
                wait_barrier<false>(empty(at.stage), at.parity);
                fetch_weights(u, at.stage), fetch_x(u, at.stage);
            }
        }
        return;
    }
    if (lane == 0) {
        for (uint32_t i = warp; i < stages; i += WARPS) init_barrier(empty(i), WARPS);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    // Barriers are there, also of the other blocks.
    meet_cluster();
    float sum[TOKENS / 2] = {};
    const uint64_t x = describe_rows(base), w = describe_rows(weights + warp / 4 * (64 * 2 * UNIT_K));
    RingPlace at;
    uint32_t last = 0;
    for (uint32_t u = 0; u < count; ++u) {
        wait_barrier<false>(full(at.stage), at.parity);
        begin_products();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            multiply_shared<T, TOKENS>(sum, w + at.stage * (TILE / 16) + j * 2, x + at.stage * (X / 16) + j * 2);
        }
        end_group();
        // Of the stage before this one.
        wait_for_groups<1>();
        if (u > 0 && lane == 0) arrive(empty(last));
        last = at.stage;
        at.advance(stages);
    }
    wait_for_groups<0>();
#pragma unroll
    for (uint32_t i = 0; i < LANE_SUMS; ++i) {
        const uint32_t o = (warp * LANE_SUMS + i) * 32 + lane, owner = o >> piece_log;
        const uint32_t to = sums + (part * piece + (o & piece - 1)) * 16;
        const float* const four = sum + 4 * i;
        if (owner == part) *(float4*)(memory + to) = make_float4(four[0], four[1], four[2], four[3]);
        else send(in_block(base + to, owner), four[0], four[1], four[2], four[3], in_block(summed, owner));
    }
    __syncwarp();
    if (lane == 0) arrive(summed);
    wait_barrier<false>(summed, 0);
    store_sums<WARPS, TOKENS>(params, (const float4*)(memory + sums), part, group0, token0);
}
