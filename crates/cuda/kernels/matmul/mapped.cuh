// Matmuls of a few tokens by a weight in bf16 as it is stored, in rows, on Hopper.
//
// ## Method
// 1. Tensor maps copy both matrices, 64 of k at a time, swizzled as wgmma reads them: weights are the 64 rows of a
//    product, tokens its columns, both in shared memory. No thread has a part in either.
// 2. A group is sixteen rows of the weight: 16 following ones, or 8 of the gate and the matching 8 of the up half,
//    which the map brings together, so that both sums of a pair are one thread's. A tile is a group a warp.
// 3. The blocks of a cluster share k.
// 4. Weights are asked for before the wait for the kernel before, as many stages as there are; x comes after it.
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
    uint32_t parts;        // of k, and blocks of a cluster
    uint32_t stages;
    uint32_t gated;
};
TWIN_SIZE(MappedParams, 384);
TWIN_FIELD(MappedParams, weight, 0);
TWIN_FIELD(MappedParams, x, 128);
TWIN_FIELD(MappedParams, step, 256);
TWIN_FIELD(MappedParams, tile_groups, 352);
TWIN_FIELD(MappedParams, parts, 356);
TWIN_FIELD(MappedParams, stages, 360);
TWIN_FIELD(MappedParams, gated, 364);

// Groups from one on, as many as the map has, of 64 of k.
__device__ __forceinline__ void copy_groups(
    uint32_t to, const TensorMap& map, uint32_t k, uint32_t group, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %3, %4}], [%5];" ::"r"(to), "l"(&map), "r"(k), "r"(0), "r"(group), "r"(barrier) : "memory");
}
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
// A place in a ring of stages.
struct RingCounter {
    uint32_t stage = 0, parity = 0;
    __device__ __forceinline__ void advance(uint32_t stages) {
        if (++stage == stages) stage = 0, parity ^= 1;
    }
};

// WARPS multiply, four or eight, and one copies.
template <typename T, int WARPS, int TOKENS> __device__ __forceinline__ void mapped(const MappedParams& params) {
    constexpr uint32_t TILE = WARPS * 16 * 2 * UNIT_K, X = TOKENS * 2 * UNIT_K;
    constexpr uint32_t LANE_SUMS = TOKENS / 8, SUMS = WARPS * 32 * LANE_SUMS;  // float4s
    // The swizzle is one of addresses.
    extern __shared__ __align__(1024) uint8_t memory[];
    let_next_start();
    const StepParams& p = params.step;
    const uint32_t stages = params.stages, parts = params.parts;
    const uint32_t base = shared_address(memory), weights = base + stages * X;
    const uint32_t sums = stages * (X + TILE), barriers = base + sums + SUMS * 16;
    const auto full = [&](uint32_t stage) { return barriers + stage * 8; };
    const auto empty = [&](uint32_t stage) { return barriers + (stages + stage) * 8; };
    const uint32_t summed = barriers + 2 * stages * 8;
    // The compiler is to see that it is one of a warp.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t tile = blockIdx.x / parts, part = blockIdx.x % parts, group0 = tile * params.tile_groups;
    const uint32_t units = (p.k + UNIT_K - 1) / UNIT_K;
    const uint32_t first = part * units / parts, count = (part + 1) * units / parts - first;
    if (warp == WARPS) {
        const uint32_t bytes = (params.tile_groups * 16 + p.t) * 2 * UNIT_K;
        const auto fetch_weights = [&](uint32_t unit, uint32_t stage) {
            expect_bytes(full(stage), bytes);
            copy_groups(weights + stage * TILE, params.weight, (first + unit) * UNIT_K, group0, full(stage));
        };
        const auto fetch_x = [&](uint32_t unit, uint32_t stage) {
            tensor_copy(base + stage * X, params.x, (first + unit) * UNIT_K, 0, full(stage));
        };
        const uint32_t before = min(stages, count);
        if (lane == 0) {
            for (uint32_t i = 0; i < stages; ++i) {
                init_barrier(full(i));
                init_barrier(empty(i), WARPS);
            }
            init_barrier(summed);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            expect_bytes(summed, SUMS * 16);
            for (uint32_t u = 0; u < before; ++u) fetch_weights(u, u);
            prefetch_map(params.x);
        }
        __syncwarp();
        meet_cluster();
        if (lane == 0) {
            wait_for_last();
            for (uint32_t u = 0; u < before; ++u) fetch_x(u, u);
            RingCounter at;
            for (uint32_t u = stages; u < count; ++u, at.advance(stages)) {
                wait_barrier<false>(empty(at.stage), at.parity);
                fetch_weights(u, at.stage), fetch_x(u, at.stage);
            }
        }
        return;
    }
    // Barriers are there, also of the other blocks.
    meet_cluster();
    float sum[TOKENS / 2] = {};
    const uint64_t x = describe_rows(base), w = describe_rows(weights + warp / 4 * (64 * 2 * UNIT_K));
    RingCounter at;
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
    const uint32_t piece = SUMS / parts;
#pragma unroll
    for (uint32_t i = 0; i < LANE_SUMS; ++i) {
        const uint32_t o = (warp * LANE_SUMS + i) * 32 + lane, owner = o / piece;
        const uint32_t to = base + sums + (part * piece + o % piece) * 16;
        send(in_block(to, owner), sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3], in_block(summed, owner));
    }
    wait_barrier<false>(summed, 0);
#pragma unroll 1
    for (uint32_t at = threadIdx.x; at < piece; at += 32 * WARPS) {
        const float4* const from = (const float4*)(memory + sums) + at;
        float4 v = from[0];
        for (uint32_t i = 1; i < parts; ++i) {
            const float4 next = from[i * piece];
            v.x += next.x, v.y += next.y, v.z += next.z, v.w += next.w;
        }
        const uint32_t o = part * piece + at, of_lane = o % 32, of_warp = o / 32 / LANE_SUMS;
        const uint32_t group = group0 + of_warp, token = o / 32 % LANE_SUMS * 8 + of_lane % 4 * 2;
        if (of_warp >= params.tile_groups || group >= p.packing.groups) continue;
        const uint32_t row = packed_row(p.packing, group, of_lane / 4);
        if (p.y_type == Y_BF16) {
            if (params.gated) store_tokens<true, bf16>(p, row, token, v);
            else store_tokens<false, bf16>(p, row, token, v);
        } else {
            if (params.gated) store_tokens<true, float>(p, row, token, v);
            else store_tokens<false, float>(p, row, token, v);
        }
    }
}
