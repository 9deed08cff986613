// What the kernels of matmuls share: y = x * w^T.
#pragma once
#include "fragments.cuh"
#include "../common/memory.cuh"

enum YType : uint32_t { Y_F32, Y_F16, Y_BF16 };

// The twin of `MatmulParams` in src/launch/params.rs.
struct MatmulParams {
    const void* x;
    const void* w;
    void* y;
    const float* scales;           // [scale rows, scale_columns], FP8 alone
    const uint32_t* scale_rows;    // the row of scales of each row of w
    uint64_t x_stride, y_stride;   // elements
    uint32_t t, n, k;
    uint32_t scale_columns;
    Divisor by_block;              // by the columns of a block of scales
    uint32_t y_type;
};
TWIN_SIZE(MatmulParams, 88);
TWIN_FIELD(MatmulParams, x, 0);
TWIN_FIELD(MatmulParams, w, 8);
TWIN_FIELD(MatmulParams, y, 16);
TWIN_FIELD(MatmulParams, scales, 24);
TWIN_FIELD(MatmulParams, scale_rows, 32);
TWIN_FIELD(MatmulParams, x_stride, 40);
TWIN_FIELD(MatmulParams, y_stride, 48);
TWIN_FIELD(MatmulParams, t, 56);
TWIN_FIELD(MatmulParams, n, 60);
TWIN_FIELD(MatmulParams, k, 64);
TWIN_FIELD(MatmulParams, scale_columns, 68);
TWIN_FIELD(MatmulParams, by_block, 72);
TWIN_FIELD(MatmulParams, y_type, 80);

__device__ __forceinline__ float widen(e4m3 x) { return (float)x; }

__device__ __forceinline__ void store(const MatmulParams& p, uint32_t t, uint32_t n, float v) {
    const uint64_t at = t * p.y_stride + n;
    if (p.y_type == Y_F32) ((float*)p.y)[at] = narrow<float>(v);
    else if (p.y_type == Y_F16) ((f16*)p.y)[at] = narrow<f16>(v);
    else ((bf16*)p.y)[at] = narrow<bf16>(v);
}

// The scales of a row of w.
__device__ __forceinline__ const float* scales_of(const MatmulParams& p, uint32_t n) {
    return p.scales + (uint64_t)p.scale_rows[n] * p.scale_columns;
}

// 16 bytes into shared memory, of which those from `bytes` on are zeros.
__device__ __forceinline__ void copy16(uint32_t to, const void* from, uint32_t bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy16(void* to, const void* from, uint32_t bytes) {
    copy16((uint32_t)__cvta_generic_to_shared(to), from, bytes);
}
// What has been asked for since the last one of these is a group; waits until no more than so many are under way.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// Of the blocks whose warps share k.
constexpr uint32_t WARPS = 8;

// Sums of all warps into the first's, in an order that does not change.
template <int N> __device__ __forceinline__ void sum_warps(float (&sum)[N]) {
    // So many at a time: 16 KB.
    constexpr int PIECE = N < 32 ? N : 32;
    __shared__ float of_warp[WARPS / 2][PIECE][32];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int first = 0; first < N; first += PIECE) {
#pragma unroll
        for (uint32_t half = WARPS / 2; half > 0; half /= 2) {
            if (warp >= half && warp < 2 * half) {
#pragma unroll
                for (int i = 0; i < PIECE; ++i) of_warp[warp - half][i][lane] = sum[first + i];
            }
            __syncthreads();
            if (warp < half) {
#pragma unroll
                for (int i = 0; i < PIECE; ++i) sum[first + i] += of_warp[warp][i][lane];
            }
            __syncthreads();
        }
    }
}

// The same, and what becomes of it: `use(i, sums)` for each four, by the threads that have the place of those that
// brought them. All warps take part, and the code is there once.
template <int N, typename Use> __device__ __forceinline__ void use_sums(const float (&sum)[N][4], Use use) {
    // So many at a time: 32 KB.
    constexpr int PIECE = N < (int)WARPS ? N : (int)WARPS;
    static_assert(N % PIECE == 0);
    __shared__ float4 of_warp[WARPS][PIECE][32];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int first = 0; first < N; first += PIECE) {
        if (first > 0) __syncthreads();
#pragma unroll
        for (int i = 0; i < PIECE; ++i) {
            const float(&s)[4] = sum[first + i];
            of_warp[warp][i][lane] = make_float4(s[0], s[1], s[2], s[3]);
        }
        __syncthreads();
        if (warp >= PIECE) continue;
        float4 s[WARPS];
#pragma unroll
        for (uint32_t i = 0; i < WARPS; ++i) s[i] = of_warp[i][warp][lane];
#pragma unroll
        for (uint32_t half = WARPS / 2; half > 0; half /= 2) {
#pragma unroll
            for (uint32_t i = 0; i < half; ++i) {
                const float4 a = s[i], b = s[i + half];
                s[i] = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
            }
        }
        const float of_all[4] = {s[0].x, s[0].y, s[0].z, s[0].w};
        use(first + warp, of_all);
    }
}
