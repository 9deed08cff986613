// The matmul for any alignment, whose sums have one defined order, and FP8 weights decoded for cublasLt.
//
// An output is one chain of f32 fused multiply-adds from zero, over k in ascending order; an FP8 weight's
// code is multiplied by its scale in f32 first. No tensor core, split or reduction takes part, so the bits
// depend on the numbers alone.
#include "matmul.cuh"

template <typename W>
__device__ __forceinline__ float weight(const MatmulParams& p, uint32_t n, uint32_t k) {
    const float w = widen(((const W*)p.w)[(uint64_t)n * p.k + k]);
    if constexpr (sizeof(W) > 1) return w;
    return w * scales_of(p, n)[p.by_block.quotient(k)];
}

// A block of 256 threads to a tile of 64 x 64 of y, through shared memory, 16 of k at a time.
template <typename X, typename W> __device__ __forceinline__ void any(const MatmulParams& p) {
    constexpr int TILE = 64, DEPTH = 16;
    __shared__ float xs[DEPTH][TILE + 4], ws[DEPTH][TILE + 4];
    const uint32_t n0 = blockIdx.x * TILE, t0 = blockIdx.y * TILE;
    const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    begin();
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

// Kernels are named matmul_any_<x>_<w>.
#define KERNEL(X, W)                                                                            \
    extern "C" __global__ void __launch_bounds__(256, 4)                                        \
    matmul_any_##X##_##W(const __grid_constant__ MatmulParams p) { any<X, W>(p); }
using f32 = float;
#define MATMULS(W) KERNEL(f32, W) KERNEL(f16, W) KERNEL(bf16, W)
MATMULS(f32)
MATMULS(f16)
MATMULS(bf16)
MATMULS(e4m3)

// An FP8 weight to bf16, for cublasLt: exact where the scales are powers of two, which the host
// has made sure of. k is a multiple of 16, as are the blocks.
extern "C" __global__ void __launch_bounds__(256)
decode_e4m3_to_bf16(const __grid_constant__ MatmulParams p) {
    let_next_start();
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, row_vectors = p.k / 16;
    const uint32_t n = i / row_vectors, k = 16 * (i - n * row_vectors);
    if (n >= p.n) return;
    const float s = scales_of(p, n)[p.by_block.quotient(k)];
    const auto w = ((const Vector<e4m3, 16>*)p.w)[i];
    Vector<bf16, 8> out[2];
#pragma unroll
    for (int j = 0; j < 16; ++j) out[j / 8].x[j % 8] = narrow<bf16>(widen(w.x[j]) * s);
    wait_for_last();
    auto* y = (Vector<bf16, 8>*)p.y + 2ull * i;
    y[0] = out[0];
    y[1] = out[1];
}
