// Matmuls of more tokens than decode steps take, by a packed FP8 weight (packed.cuh), on Hopper's warpgroups.
//
// ## Method
// 1. A block has STREAMS streams of the weight and up to TOKENS tokens; the BLOCKS of a cluster share k. Stages of 64 of k
//    come by bulk copies, x by a tensor map. The first ones' weights are asked for before the wait for the
//    kernel before.
// 2. Weights are the 64 rows of a product, in registers; tokens its columns, in shared memory. Codes become
//    bf16 by their bits and one product with a power of two, their scale times 2^120: exact, as every
//    scale is a power of two up to 2^7 and no code a NaN (src/weight.rs asks). So sums are those of all of k.
// 3. Codes lie as mma takes them, eight of a row and following k a lane. A product takes two of every eight, so the
//    four lanes of a row trade theirs.
// 4. A stage is decoded while the last one is multiplied. SETS of warpgroups take the stages in turns.
// 5. Sums are left where the stages were, and added up in the order of k: a block of the cluster has its part
//    of them. Then rows are stored, or activated first.
#pragma once
#include "step.cuh"
#include "wgmma.cuh"
#include "../common/cluster.cuh"

// The twin of `WarpgroupParams` in src/launch/params.rs.
struct WarpgroupParams {
    TensorMap x;  // in place of the step's
    StepParams step;
    uint32_t rows;  // of x that a block has: TOKENS at most; a multiple of 8 where there are more blocks
};
TWIN_SIZE(WarpgroupParams, 256);
TWIN_FIELD(WarpgroupParams, x, 0);
TWIN_FIELD(WarpgroupParams, step, 128);
TWIN_FIELD(WarpgroupParams, rows, 224);

__device__ __forceinline__ float4 read_block(uint32_t address) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(address) : "memory");
    return v;
}

// A scale as the factor that the bits of codes need to be values of bf16, twice.
__device__ __forceinline__ uint32_t factor_of(float scale) {
    const uint32_t bits = __float_as_uint(scale * 0x1p120f);
    return __byte_perm(bits, bits, 0x3232);
}
// Two bf16s by two.
__device__ __forceinline__ uint32_t multiply2(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}
// Four codes times a factor: the first and the third, and the two others.
__device__ __forceinline__ void decode4(uint32_t codes, uint32_t factor, uint32_t& even, uint32_t& odd) {
    const uint32_t sign = 0x80008000u, rest = 0x07f007f0u;
    even = multiply2(((codes << 4) & rest) | ((codes << 8) & sign), factor);
    odd = multiply2(((codes >> 4) & rest) | (codes & sign), factor);
}

// What the lanes of a row do with their codes.
struct Trade {
    bool upper, odd;
    uint32_t keeps, sends;  // selectors

    __device__ __forceinline__ explicit Trade(uint32_t lane) {
        upper = lane & 2, odd = lane & 1;
        const uint32_t first = upper ? 0x1504u : 0x5140u;
        keeps = first + (odd ? 0x2222u : 0u), sends = first + (odd ? 0u : 0x2222u);
    }
    // Eight codes of a lane, of k from 8q on, for two products of 16 of k: `to` is this row's word of the first
    // half of k of the first, its next ones are two and four further.
    __device__ __forceinline__ void operator()(uint2 codes, uint32_t factor, uint32_t* to) const {
        const uint32_t own = upper ? codes.y : codes.x, other = __shfl_xor_sync(~0u, upper ? codes.x : codes.y, 2);
        const uint32_t kept = __byte_perm(own, other, keeps);
        const uint32_t got = __shfl_xor_sync(~0u, __byte_perm(own, other, sends), 1);
        decode4(odd ? got : kept, factor, to[0], to[4]);
        decode4(odd ? kept : got, factor, to[2], to[6]);
    }
};

// The shape of a block: SLOTS groups of a stream at most, 4 or 8.
template <int STREAMS, int SLOTS, int TOKENS, int SETS, int STAGES> struct WarpgroupShape {
    static constexpr int ROW_WARPS = STREAMS * SLOTS, WARPS = ROW_WARPS * SETS;
    static constexpr int X = TOKENS * 2 * UNIT_K, SLOT = HEAD + SLOTS * GROUP_CODES, WEIGHTS = STREAMS * SLOT;
    static constexpr int SUMS = ROW_WARPS * (TOKENS / 8) * 32;  // float4s of a set
    static constexpr int RING = STAGES * (X + WEIGHTS), ALL_SUMS = SETS * SUMS * 16;
    static constexpr int BARRIERS = RING > ALL_SUMS ? RING : ALL_SUMS;  // behind both
};

// REGISTERS: of a thread that multiplies, where they are dealt out; else 0. BEFORE: stages whose weights are asked
// for before the wait.
template <bool GATED, int STREAMS, int SLOTS, int TOKENS, int BLOCKS, int SETS, int STAGES, int BEFORE, int REGISTERS>
__device__ __forceinline__ void warpgroups(const WarpgroupParams& params) {
    using Shape = WarpgroupShape<STREAMS, SLOTS, TOKENS, SETS, STAGES>;
    constexpr int THREADS = 32 * Shape::WARPS;
    static_assert(BEFORE <= STAGES && SETS <= STAGES, "stages are there");
    // The swizzle is one of addresses.
    extern __shared__ __align__(1024) uint8_t memory[];
    let_next_start();
    const StepParams& p = params.step;
    const uint32_t base = shared_address(memory), weights = base + STAGES * Shape::X;
    const auto full = [&](uint32_t stage) { return base + Shape::BARRIERS + stage * 8; };
    const auto empty = [&](uint32_t stage) { return full(STAGES + stage); };
    // The compiler is to see that it is one of a warp.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t units = p.k / UNIT_K, rank = blockIdx.x % BLOCKS, stream0 = blockIdx.x / BLOCKS * STREAMS;
    const uint32_t token0 = blockIdx.y * params.rows;
    const uint32_t first = rank * units / BLOCKS, count = (rank + 1) * units / BLOCKS - first;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < STAGES; ++i) {
            init_barrier(full(i));
            init_barrier(empty(i), Shape::ROW_WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (warp >= Shape::WARPS) {
        if constexpr (REGISTERS > 0) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == Shape::WARPS && lane == 0) {
            const uint8_t* w[STREAMS];
            uint32_t unit[STREAMS], bytes = params.rows * 2 * UNIT_K;
#pragma unroll
            for (int i = 0; i < STREAMS; ++i) {
                // Beyond the last stream the last one stands in, and its results are not stored.
                const Stream s(p.packing, min(stream0 + i, p.packing.streams - 1), units);
                w[i] = p.w + s.offset + (uint64_t)first * s.unit, unit[i] = s.unit, bytes += s.unit;
            }
            const auto fetch_weights = [&](uint32_t stage) {
                const uint32_t barrier = full(stage), to = weights + stage * Shape::WEIGHTS;
                expect_bytes(barrier, bytes);
#pragma unroll
                for (int i = 0; i < STREAMS; ++i) {
                    bulk_copy(to + i * Shape::SLOT, w[i], unit[i], barrier);
                    w[i] += unit[i];
                }
            };
            const auto fetch_x = [&](uint32_t unit, uint32_t stage) {
                const uint32_t barrier = full(stage);
                tensor_copy(base + stage * Shape::X, params.x, (first + unit) * UNIT_K, token0, barrier);
            };
            const uint32_t before = min((uint32_t)BEFORE, count);
            for (uint32_t u = 0; u < before; ++u) fetch_weights(u);
            wait_for_last();
            for (uint32_t u = 0; u < before; ++u) fetch_x(u, u);
            RingPlace<STAGES> at{0};
            for (uint32_t u = 0; u < count; ++u, at.template advance<1>()) {
                if (u < before) continue;
                wait_barrier<false>(empty(at.stage), at.parity ^ 1);
                fetch_weights(at.stage), fetch_x(u, at.stage);
            }
        }
        __syncwarp();
        if constexpr (BLOCKS > 1) sync_cluster(), sync_cluster();
        return;
    }
    if constexpr (REGISTERS > 0) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
    float sum[TOKENS / 2] = {};
    const uint32_t set = warp / Shape::ROW_WARPS, row_warp = warp % Shape::ROW_WARPS;
    const uint8_t* const slot = memory + STAGES * Shape::X + row_warp / SLOTS * Shape::SLOT;
    const uint8_t* const my_scales = slot + row_warp % SLOTS * 16;
    const uint8_t* const my_codes = slot + HEAD + row_warp % SLOTS * GROUP_CODES + lane * 16;
    const Trade trade(lane);
    const auto decode = [&](uint32_t stage, uint32_t (&a)[16]) {
        const float4 scales = *(const float4*)(my_scales + stage * Shape::WEIGHTS);
        const uint8_t* const codes = my_codes + stage * Shape::WEIGHTS;
        const uint4 low = *(const uint4*)codes, high = *(const uint4*)(codes + GROUP_CODES / 2);
        trade(make_uint2(low.x, low.y), factor_of(scales.x), a);
        trade(make_uint2(high.x, high.y), factor_of(scales.y), a + 1);
        trade(make_uint2(low.z, low.w), factor_of(scales.z), a + 8);
        trade(make_uint2(high.z, high.w), factor_of(scales.w), a + 9);
    };
    const uint64_t x = describe_rows(base);
    RingPlace<STAGES> at{set};
    const auto arrived = [&] { wait_barrier<false>(full(at.stage), at.parity); };
    const uint32_t turns = count > set ? (count - set + SETS - 1) / SETS : 0;
    uint32_t last = 0;
    // The set's next stage, from `ready`; the one after it is brought to `other`.
    const auto take_turn = [&](uint32_t turn, const uint32_t (&ready)[16], uint32_t (&other)[16]) {
        begin_products();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            multiply_warpgroup<TOKENS>(sum, ready + 4 * j, x + at.stage * (Shape::X / 16) + j * 2);
        }
        end_group();
        const uint32_t before = last;
        last = at.stage;
        at.template advance<SETS>();
        // Of the stage before this one: `other` is free.
        wait_for_groups<1>();
        if (turn > 0 && lane == 0) arrive(empty(before));
        if (turn + 1 < turns) {
            arrived();
            decode(at.stage, other);
        }
    };
    uint32_t a[2][16];
    if (turns > 0) {
        arrived();
        decode(at.stage, a[0]);
        uint32_t turn = 0;
        for (; turn + 1 < turns; turn += 2) take_turn(turn, a[0], a[1]), take_turn(turn + 1, a[1], a[0]);
        if (turn < turns) take_turn(turn, a[0], a[1]);
        wait_for_groups<0>();
    }
    const auto sync_block = [] { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); };
    // No product reads a stage any longer.
    sync_block();
    float4* const mine = (float4*)memory + warp * (TOKENS / 8) * 32 + lane;
#pragma unroll
    for (int t = 0; t < TOKENS / 8; ++t) {
        mine[t * 32] = make_float4(sum[4 * t], sum[4 * t + 1], sum[4 * t + 2], sum[4 * t + 3]);
    }
    if constexpr (BLOCKS > 1) sync_cluster();
    else sync_block();
    uint32_t blocks[BLOCKS];
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) blocks[b] = in_block(base, b);
    const uint32_t end = (rank + 1) * Shape::SUMS / BLOCKS;
#pragma unroll 2
    for (uint32_t o = rank * Shape::SUMS / BLOCKS + threadIdx.x; o < end; o += THREADS) {
        float4 parts[BLOCKS * SETS];
#pragma unroll
        for (int i = 0; i < BLOCKS * SETS; ++i) parts[i] = read_block(blocks[i / SETS] + (i % SETS * Shape::SUMS + o) * 16);
        float4 v = parts[0];
#pragma unroll
        for (int i = 1; i < BLOCKS * SETS; ++i) v.x += parts[i].x, v.y += parts[i].y, v.z += parts[i].z, v.w += parts[i].w;
        const uint32_t of_lane = o % 32, of_warp = o / 32 / (TOKENS / 8), stream = stream0 + of_warp / SLOTS;
        const uint32_t column = o / 32 % (TOKENS / 8) * 8;
        if (stream >= p.packing.streams || column >= params.rows) continue;
        const Stream s(p.packing, stream, units);
        if (of_warp % SLOTS >= s.groups) continue;
        const uint32_t row = packed_row(p.packing, s.first + of_warp % SLOTS, of_lane / 4);
        const uint32_t token = token0 + column + of_lane % 4 * 2;
        if (p.y_type == Y_BF16) store_tokens<GATED, bf16>(p, row, token, v);
        else if (p.y_type == Y_F16) store_tokens<GATED, f16>(p, row, token, v);
        else store_tokens<GATED, float>(p, row, token, v);
    }
    __syncwarp();
    // No block leaves while another reads its sums.
    if constexpr (BLOCKS > 1) sync_cluster();
}
