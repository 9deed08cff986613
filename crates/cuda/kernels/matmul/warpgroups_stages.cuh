// What the kernels of warpgroups.cuh have around their products: parameters, how codes become bf16, and the two warps of a
// block that ask for its stages.
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
// The bits of `a` that are set in `mask`, else those of `b`.
__device__ __forceinline__ uint32_t chosen(uint32_t a, uint32_t b, uint32_t mask) {
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(r) : "r"(a), "r"(b), "r"(mask));
    return r;
}
// Decodes with a mask and factors that the compiler does not know. A known mask it takes apart, for one operation in four
// more; known factors become shifts, which share their unit with the masks.
struct Decoder {
    uint32_t rest, by_16, by_256;

    // By all lanes of a warp.
    __device__ __forceinline__ Decoder() {
        const uint32_t all = __activemask();
        rest = all & 0x07f007f0u, by_16 = all & 16, by_256 = all & 256;
    }
    // Four codes times a factor: the first and the third, and the two others.
    __device__ __forceinline__ void decode4(uint32_t codes, uint32_t factor, uint32_t& even, uint32_t& odd) const {
        // Beside the rest the one bit of a half of the signs' words that is not 0 is a bf16's sign.
        const uint32_t signs = codes & 0x80808080u;
        even = multiply2(chosen(codes * by_16, signs * by_256, rest), factor);
        odd = multiply2(chosen(codes >> 4, signs, rest), factor);
    }
    // Fragments of the four products of 64 of k: a word of codes is a row's two fragments of a product.
    __device__ __forceinline__ void decode_unit(uint4 low, uint4 high, float4 scales, uint32_t (&to)[16]) const {
        const uint32_t of_low[4] = {low.x, low.y, low.z, low.w}, of_high[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            decode4(of_low[j], factor_of(j < 2 ? scales.x : scales.z), to[4 * j], to[4 * j + 2]);
            decode4(of_high[j], factor_of(j < 2 ? scales.y : scales.w), to[4 * j + 1], to[4 * j + 3]);
        }
    }
};

// What a block has of a call, of a shape that says how its shared memory is laid out.
template <class Shape> struct WarpgroupStages {
    uint32_t base, rank, first, count, row_tiles, tiles;

    __device__ __forceinline__ WarpgroupStages(const WarpgroupParams& params, uint32_t base) : base(base) {
        const StepParams& p = params.step;
        const uint32_t units = p.k / UNIT_K;
        rank = blockIdx.x % Shape::BLOCKS;
        first = rank * units / Shape::BLOCKS, count = (rank + 1) * units / Shape::BLOCKS - first;
        row_tiles = (p.packing.streams + Shape::STREAMS - 1) / Shape::STREAMS;
        tiles = row_tiles * ((p.t + params.rows - 1) / params.rows);
    }
    __device__ __forceinline__ uint32_t full(uint32_t stage) const { return base + Shape::BARRIERS + stage * 8; }
    __device__ __forceinline__ uint32_t empty(uint32_t stage) const { return full(Shape::STAGES + stage); }
    // Of what other blocks send.
    __device__ __forceinline__ uint32_t sent() const { return full(2 * Shape::STAGES); }

    __device__ __forceinline__ void init_barriers() const {
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < Shape::STAGES; ++i) {
                init_barrier(full(i), 2);
                init_barrier(empty(i), Shape::WARPS);
            }
            init_barrier(sent());
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            if constexpr (Shape::BLOCKS > 1) expect_bytes(sent(), Shape::WARPS * Shape::SUMS);
        }
        __syncthreads();
        if constexpr (Shape::BLOCKS > 1) arrive_at_cluster();
    }
    __device__ __forceinline__ void cluster_is_there() const {
        if constexpr (Shape::BLOCKS > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
    // By the warps behind those that multiply: one asks for x, the next for weights.
    __device__ __forceinline__ void copy(const WarpgroupParams& params, uint32_t warp) const {
        const StepParams& p = params.step;
        const uint32_t lane = threadIdx.x % 32, weights = base + Shape::STAGES * Shape::X, units = p.k / UNIT_K;
        RingPlace at;
        const auto next_empty = [&](uint32_t bytes) {
            wait_barrier<false>(empty(at.stage), at.parity ^ 1);
            expect_bytes(full(at.stage), bytes);
        };
        if (warp == Shape::WARPS && lane == 0) {
            wait_for_last();
            for (uint32_t tile = blockIdx.x / Shape::BLOCKS; tile < tiles; tile += gridDim.x / Shape::BLOCKS) {
                const uint32_t token = tile / row_tiles * params.rows;
                for (uint32_t u = 0; u < count; ++u, at.advance(Shape::STAGES)) {
                    next_empty(params.rows * 2 * UNIT_K);
                    tensor_copy(base + at.stage * Shape::X, params.x, (first + u) * UNIT_K, token, full(at.stage));
                }
            }
        } else if (warp == Shape::WARPS + 1 && lane == 0) {
            for (uint32_t tile = blockIdx.x / Shape::BLOCKS; tile < tiles; tile += gridDim.x / Shape::BLOCKS) {
                const uint8_t* w[Shape::STREAMS];
                uint32_t unit[Shape::STREAMS], bytes = 0;
#pragma unroll
                for (int i = 0; i < Shape::STREAMS; ++i) {
                    // Beyond the last stream the last one stands in, and its results are not stored.
                    const uint32_t stream = min(tile % row_tiles * Shape::STREAMS + i, p.packing.streams - 1);
                    const Stream s(p.packing, stream, units);
                    w[i] = p.w + s.offset + (uint64_t)first * s.unit, unit[i] = s.unit, bytes += s.unit;
                }
                for (uint32_t u = 0; u < count; ++u, at.advance(Shape::STAGES)) {
                    next_empty(bytes);
                    const uint32_t to = weights + at.stage * Shape::WEIGHTS;
#pragma unroll
                    for (int i = 0; i < Shape::STREAMS; ++i) {
                        bulk_copy(to + i * Shape::SLOT, w[i], unit[i], full(at.stage));
                        w[i] += unit[i];
                    }
                }
            }
        }
        __syncwarp();
        cluster_is_there();
    }
};
