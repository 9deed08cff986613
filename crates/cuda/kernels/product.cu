// y = x * w^T in f32: for few rows of x, for pairs of types that cublasLt does not take, and for
// weights of FP8, which are decoded on the way.
#include "numbers.cuh"
#include <cuda_fp8.h>

using e4m3 = __nv_fp8_e4m3;
__device__ __forceinline__ float widen(e4m3 x) { return (float)x; }

enum YType : uint32_t { Y_F32, Y_F16, Y_BF16 };

// The twin of `ProductParams` in src/params.rs.
struct ProductParams {
    const void* x;
    const void* w;
    void* y;
    const float* scales;           // [scale rows, scale_columns], FP8 alone
    const uint32_t* scale_rows;    // the row of scales of each row of w
    uint64_t x_stride, y_stride;   // elements
    uint32_t t, n, k;
    uint32_t scale_columns, block_columns;
    uint32_t y_type;
};

__device__ __forceinline__ void store(const ProductParams& p, uint32_t t, uint32_t n, float v) {
    const uint64_t at = t * p.y_stride + n;
    if (p.y_type == Y_F32) ((float*)p.y)[at] = narrow<float>(v);
    else if (p.y_type == Y_F16) ((f16*)p.y)[at] = narrow<f16>(v);
    else ((bf16*)p.y)[at] = narrow<bf16>(v);
}

template <typename W>
__device__ __forceinline__ float weight(const ProductParams& p, uint32_t n, uint32_t k) {
    const float w = widen(((const W*)p.w)[(uint64_t)n * p.k + k]);
    if constexpr (sizeof(W) > 1) return w;
    return w * p.scales[(uint64_t)p.scale_rows[n] * p.scale_columns + k / p.block_columns];
}

template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Lanes {
    T x[N];
};

// A warp to a row of w, ROWS rows of x at a time: w is read once for them.
template <typename X, typename W, int ROWS, bool VECTOR>
__device__ __forceinline__ void few_rows(const ProductParams& p) {
    constexpr int N = VECTOR ? 16 / (int)sizeof(W) : 1;
    const uint32_t n = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const uint32_t t0 = blockIdx.y * ROWS;
    if (n >= p.n) return;
    const W* w = (const W*)p.w + (uint64_t)n * p.k;
    const float* scales = nullptr;
    if constexpr (sizeof(W) == 1) scales = p.scales + (uint64_t)p.scale_rows[n] * p.scale_columns;
    float sum[ROWS] = {};
#pragma unroll 4
    for (uint32_t k = lane * N; k < p.k; k += 32 * N) {
        const auto wv = *(const Lanes<W, N>*)(w + k);
        float wf[N];
#pragma unroll
        for (int j = 0; j < N; ++j) wf[j] = widen(wv.x[j]);
        if constexpr (sizeof(W) == 1) {
            if constexpr (N > 1) {
                // The host takes this path where blocks are whole vectors.
                const float s = scales[k / p.block_columns];
#pragma unroll
                for (int j = 0; j < N; ++j) wf[j] *= s;
            } else {
                wf[0] *= scales[k / p.block_columns];
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (t0 + r >= p.t) break;
            const X* x = (const X*)p.x + (t0 + r) * p.x_stride + k;
            const auto xv = *(const Lanes<X, N>*)x;
#pragma unroll
            for (int j = 0; j < N; ++j) sum[r] = fmaf(widen(xv.x[j]), wf[j], sum[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        for (int step = 16; step > 0; step /= 2) {
            sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], step);
        }
        if (lane == 0 && t0 + r < p.t) store(p, t0 + r, n, sum[r]);
    }
}

// A block of 256 threads to a tile of 64 x 64 of y, through shared memory, 16 of k at a time.
template <typename X, typename W> __device__ __forceinline__ void tiles(const ProductParams& p) {
    constexpr int TILE = 64, DEPTH = 16;
    __shared__ float xs[DEPTH][TILE + 4], ws[DEPTH][TILE + 4];
    const uint32_t n0 = blockIdx.x * TILE, t0 = blockIdx.y * TILE;
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sum[4][4] = {};
    for (uint32_t k0 = 0; k0 < p.k; k0 += DEPTH) {
        for (uint32_t i = threadIdx.x; i < TILE * DEPTH; i += 256) {
            const uint32_t row = i / DEPTH, c = i % DEPTH, k = k0 + c;
            const bool inside = k < p.k;
            xs[c][row] = inside && t0 + row < p.t
                ? widen(((const X*)p.x)[(t0 + row) * p.x_stride + k]) : 0.0f;
            ws[c][row] = inside && n0 + row < p.n ? weight<W>(p, n0 + row, k) : 0.0f;
        }
        __syncthreads();
        const uint32_t depth = min(DEPTH, p.k - k0);
        for (uint32_t c = 0; c < depth; ++c) {
            float a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = xs[c][4 * ty + i], b[i] = ws[c][4 * tx + i];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint32_t t = t0 + 4 * ty + i, n = n0 + 4 * tx + j;
            if (t < p.t && n < p.n) store(p, t, n, sum[i][j]);
        }
}

// Kernels are named product_<shape>_<x>_<w>.
#define PRODUCT(X, W)                                                                           \
    extern "C" __global__ void __launch_bounds__(128)                                           \
    product_row_##X##_##W(const __grid_constant__ ProductParams p) {                            \
        few_rows<X, W, 1, true>(p);                                                             \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(128)                                           \
    product_rows_##X##_##W(const __grid_constant__ ProductParams p) {                           \
        few_rows<X, W, 4, true>(p);                                                             \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                           \
    product_tiles_##X##_##W(const __grid_constant__ ProductParams p) {                          \
        tiles<X, W>(p);                                                                         \
    }
using f32 = float;
#define PRODUCTS(W) PRODUCT(f32, W) PRODUCT(f16, W) PRODUCT(bf16, W)
PRODUCTS(f32)
PRODUCTS(f16)
PRODUCTS(bf16)
PRODUCTS(e4m3)

// An FP8 weight to bf16, for cublasLt: exact where the scales are powers of two, which the host
// has made sure of. k is a multiple of 16, as are the blocks.
extern "C" __global__ void __launch_bounds__(256)
decode_e4m3_to_bf16(const __grid_constant__ ProductParams p) {
    const uint64_t i = 16ull * (blockIdx.x * (uint64_t)blockDim.x + threadIdx.x);
    if (i >= (uint64_t)p.n * p.k) return;
    const uint32_t n = (uint32_t)(i / p.k), k = (uint32_t)(i - (uint64_t)n * p.k);
    const float s = p.scales[(uint64_t)p.scale_rows[n] * p.scale_columns + k / p.block_columns];
    const auto w = *(const Lanes<e4m3, 16>*)((const e4m3*)p.w + i);
    Lanes<bf16, 8> out[2];
#pragma unroll
    for (int j = 0; j < 16; ++j) out[j / 8].x[j % 8] = narrow<bf16>(widen(w.x[j]) * s);
    auto* y = (Lanes<bf16, 8>*)((bf16*)p.y + i);
    y[0] = out[0];
    y[1] = out[1];
}
