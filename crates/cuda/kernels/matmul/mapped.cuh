// Matmuls of some tokens by a weight in bf16 as it is stored, in rows, on Hopper.
//
// ## Method
// 1. Tensor maps copy both matrices, 64 of k at a time, swizzled as wgmma reads them: weights are the 64 rows of a
//    product, tokens its columns, both in shared memory. No thread has a part in either.
// 2. A group is sixteen rows of the weight: 16 following ones, or 8 of the gate and the matching 8 of the up half,
//    which the map brings together, so that both sums of a pair are one thread's. A tile is a group a warp.
// 3. The blocks of a cluster share k.
// 4. Weights are asked for before the wait for the kernel before, as many stages as there are; x comes after it, from the
//    L2, and has a ring of fewer stages. Most kernels are two blocks of a multiprocessor, and the next one may start when
//    this one has asked for most of its weights: its own come while this one's sums are added up, and not before this one's.
// 5. A block sends its sums to those of the cluster that own them (mapped_sums.cuh), to places of the rings that no stage
//    needs any longer: the last stage has the last place of its ring, whatever their number, so that the first ones are
//    free when all but two stages have been multiplied, of which the blocks tell each other. No barrier of the cluster
//    orders memory: that would wait for all that is on its way.
#pragma once
#include "mapped_sums.cuh"
#include "wgmma_shared.cuh"

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

// WARPS multiply, four or eight, and one copies.
template <typename T, int WARPS, int TOKENS> __device__ __forceinline__ void mapped(const MappedParams& params) {
    constexpr uint32_t TILE = WARPS * 16 * 2 * UNIT_K, X = TOKENS * 2 * UNIT_K;
    constexpr uint32_t LANE_SUMS = TOKENS / 8, SUMS = WARPS * 32 * LANE_SUMS;  // float4s
    // Of 128 tokens two blocks share k, and each keeps its sums of a half of them.
    constexpr bool HALVES = TOKENS == 128;
    // The swizzle is one of addresses.
    extern __shared__ __align__(1024) uint8_t memory[];
    const StepParams& p = params.step;
    const uint32_t stages = params.stages, x_stages = params.x_stages, parts_log = params.parts_log, parts = 1 << parts_log;
    // Sums come to the first places of weights.
    const uint32_t base = shared_address(memory), sums = x_stages * X, weights = base + sums, barriers = weights + stages * TILE;
    const auto full = [&](uint32_t stage) { return barriers + stage * 8; };
    const auto empty = [&](uint32_t stage) { return barriers + (stages + stage) * 8; };
    // Whether all blocks of the cluster have room for sums, and whether theirs are here.
    const uint32_t ready = barriers + 2 * stages * 8, summed = ready + 8;
    // The compiler is to see that it is one of a warp.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t part = blockIdx.x & parts - 1;
    const uint32_t group0 = (blockIdx.x >> parts_log) * params.tile_groups, token0 = blockIdx.y * params.tile_tokens;
    const uint32_t units = (p.k + UNIT_K - 1) / UNIT_K;
    const uint32_t first = part * units >> parts_log, count = ((part + 1) * units >> parts_log) - first;
    // A part with a stage less than others begins a place later.
    const uint32_t shorter = count < (units + parts - 1) >> parts_log, first_place = params.first_stage + shorter;
    const auto place = [&](uint32_t stage) {
        const uint32_t turned = stage + first_place;
        return turned < stages ? turned : turned - stages;
    };
    RingPlace at, x_at{params.first_x_stage};
    if (shorter) x_at.advance(x_stages);
    // Of the sums, those that each block of the cluster adds up.
    const uint32_t piece_log = log2_of(SUMS) - parts_log, piece = 1 << piece_log;
    if (warp == WARPS) {
        const uint32_t bytes = (params.tile_groups * 16 + params.tile_tokens) * 2 * UNIT_K, before = min(stages, count);
        // Not of those before x: they would have to share with the next kernel's what memory gives.
        const uint32_t last_before = max(min(before + 2, count), count - min(count, params.ahead));
        const auto fetch_weights = [&](uint32_t unit, uint32_t stage) {
            expect_bytes(full(stage), bytes);
            copy_groups(weights + place(stage) * TILE, params.weight, (first + unit) * UNIT_K, group0, full(stage));
            if (unit + 1 == last_before) let_next_start();
        };
        const auto fetch_x = [&](uint32_t unit, uint32_t stage) {
            tensor_copy(base + x_at.stage * X, params.x, (first + unit) * UNIT_K, token0, full(stage));
            x_at.advance(x_stages);
        };
        // One thread's, as those of several take turns.
        if (lane == 0) {
            prefetch_map(params.weight);
            for (uint32_t i = 0; i < stages; ++i) init_barrier(full(i));
            init_barrier(ready, WARPS * parts);
            init_barrier(summed, HALVES ? 1 : 1 + WARPS);
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncwarp();
        arrive_at_cluster();
        if (lane == 0) {
            RingPlace next;
            for (uint32_t u = 0; u < before; ++u, next.advance(stages)) fetch_weights(u, next.stage);
            expect_bytes(summed, (SUMS - piece) * 16);
            prefetch_map(params.x);
        }
        __syncwarp();
        wait_for_cluster();
        if (lane == 0) {
            wait_for_last();
            RingPlace next;
            const uint32_t x_before = min(x_stages, count);
            for (uint32_t u = 0; u < x_before; ++u, next.advance(stages)) fetch_x(u, next.stage);
            RingPlace freed;
            for (uint32_t u = 0; u + x_stages < count; ++u, freed.advance(stages), next.advance(stages)) {
                wait_barrier<false>(empty(freed.stage), freed.parity);
                if (u + stages < count) fetch_weights(u + stages, freed.stage);
                fetch_x(u + x_stages, next.stage);
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
    uint32_t last = 0;
    for (uint32_t u = 0; u < count; ++u) {
        wait_barrier<false>(full(at.stage), at.parity);
        const uint32_t of_place = place(at.stage) * (TILE / 16);
        begin_products();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            multiply_shared<T, TOKENS>(sum, w + of_place + j * 2, x + x_at.stage * (X / 16) + j * 2);
        }
        end_group();
        // Of the stage before this one.
        wait_for_groups<1>();
        if (u > 0 && lane == 0) arrive(empty(last));
        // Only the last two places are still to be read.
        if (u + 2 == max(count, 2) && lane < parts) arrive_in_block(in_block(ready, lane));
        last = at.stage;
        at.advance(stages), x_at.advance(x_stages);
    }
    wait_for_groups<0>();
    wait_barrier<false>(ready, 0);
    if constexpr (HALVES) {
        // The other block's sums come to the first places of both rings, this one's own and results behind them.
        const uint32_t other = part ^ 1, told = in_block(summed, other);
        const uint32_t to[2] = {in_block(weights, other), in_block(base, other)};
        const HalfSums theirs = {memory + sums, memory}, mine = {memory + X, memory + X + SUMS * 4};
        const uint32_t own = warp * (4 * 32) + lane;
        if (part == 0) part_sums<WARPS, 0>(sum, to, told, mine, own);
        else part_sums<WARPS, 1>(sum, to, told, mine, own);
        wait_barrier<false>(summed, 0);
        const uint32_t skipped = part * 64, end = min(p.t - token0, params.tile_tokens), tokens = end - min(end, skipped);
        store_half<WARPS>(params, mine, theirs, memory + sums + TILE, group0, token0 + skipped, tokens);
    } else {
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
}
