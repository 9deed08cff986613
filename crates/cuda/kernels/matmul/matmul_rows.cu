// Matmuls with few rows of x, as fast as w is read.
//
// ## Method
// 1. A block has 16 or 32 rows of w and 8 to 64 of x; its eight warps have different k.
// 2. w goes from memory to the tensor cores' registers as it is stored, several steps ahead. The first of
//    them are read while the kernel before this one is still writing x.
// 3. FP8 is decoded on the way, and numbers of several parts are split (fragments.cuh).
// 4. The sum over a block of scales is multiplied by the scale and added in f32.
// 5. The warps' sums are added in an order that does not change, and stored.
#include "matmul.cuh"

// A block's GROUPS times 16 rows of w and TILES times 8 rows of x, and E elements of k a thread at a
// time, which lie in one block of scales with those of the other threads of a row: 4 * E divides the
// blocks' columns. DEPTH steps of w, of x too where it is read AHEAD, are read before the first is
// multiplied.
template <typename X, typename W, int GROUPS, int TILES, int DEPTH, bool AHEAD, int E>
__device__ __forceinline__ void few_rows(const MatmulParams& p) {
    using M = typename Multiplied<X, W>::Type;
    constexpr bool SCALED = sizeof(W) == 1;
    constexpr int W_WORDS = E * (int)sizeof(W) / 4, X_WORDS = E * (int)sizeof(X) / 4;
    constexpr uint32_t STEP = 4 * E;

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const uint32_t n0 = blockIdx.x * GROUPS * 16, t0 = blockIdx.y * TILES * 8;
    // Beyond the last row the last one stands in, and its results are not stored.
    const W* w[2 * GROUPS];
    const float* scales[2 * GROUPS];
    const X* x[TILES];
#pragma unroll
    for (int i = 0; i < 2 * GROUPS; ++i) {
        const uint32_t n = min(n0 + g + 8 * i, p.n - 1);
        w[i] = (const W*)p.w + (uint64_t)n * p.k;
        if constexpr (SCALED) scales[i] = scales_of(p, n);
    }
#pragma unroll
    for (int i = 0; i < TILES; ++i) x[i] = (const X*)p.x + min(t0 + 8 * i + g, p.t - 1) * p.x_stride;

    let_next_start();
    float sum[GROUPS][TILES][4] = {};
    for (uint32_t first = warp * STEP; first < p.k; first += DEPTH * WARPS * STEP) {
        uint32_t ws[DEPTH][2 * GROUPS][W_WORDS] = {}, xs[DEPTH][AHEAD ? TILES : 1][X_WORDS] = {};
        float s[DEPTH][2 * GROUPS];
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const uint32_t k = first + d * WARPS * STEP + E * q;
            if (k >= p.k) continue;
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; ++i) read(w[i] + k, ws[d][i]);
        }
        // The first of w come while the kernel before this one writes x.
        wait_for_last();
        if constexpr (AHEAD) {
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                const uint32_t k = first + d * WARPS * STEP + E * q;
                if (k >= p.k) continue;
#pragma unroll
                for (int i = 0; i < TILES; ++i) read(x[i] + k, xs[d][i]);
            }
        }
        if constexpr (SCALED) {
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                const uint32_t k0 = min(first + d * WARPS * STEP, p.k - 1);
                const uint32_t block = p.by_block.quotient(k0);
#pragma unroll
                for (int i = 0; i < 2 * GROUPS; ++i) s[d][i] = scales[i][block];
            }
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const uint32_t k0 = first + d * WARPS * STEP, k = k0 + E * q;
            if (k0 >= p.k) break;
            float part[GROUPS][TILES][4] = {};
            float(&to)[GROUPS][TILES][4] = SCALED ? part : sum;
            // In halves of E, which takes fewer registers than all of w decoded.
            constexpr int PIECE = SCALED && E == 16 && !AHEAD ? 2 : 1;
#pragma unroll
            for (int piece = 0; piece < E / 4; piece += E / 4 / PIECE) {
                Rows<M, W> a[GROUPS][E / 4 / PIECE];
#pragma unroll
                for (int j = 0; j < E / 4 / PIECE; ++j)
#pragma unroll
                    for (int i = 0; i < GROUPS; ++i) {
                        const int at = (piece + j) * (int)sizeof(W);
                        a[i][j] = Rows<M, W>(ws[d][2 * i] + at, ws[d][2 * i + 1] + at);
                    }
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    uint32_t words[X_WORDS / PIECE] = {};
                    const uint32_t* from = words;
                    if constexpr (AHEAD) from = xs[d][tile];
                    else if (k < p.k) read(x[tile] + k + 4 * piece, words);
#pragma unroll
                    for (int j = 0; j < E / 4 / PIECE; ++j)
#pragma unroll
                        for (int i = 0; i < GROUPS; ++i) {
                            add<M, X>(to[i][tile], a[i][j], from + j * sizeof(X));
                        }
                }
            }
            if constexpr (SCALED) {
#pragma unroll
                for (int i = 0; i < GROUPS; ++i)
#pragma unroll
                    for (int tile = 0; tile < TILES; ++tile)
#pragma unroll
                        for (int c = 0; c < 4; ++c) {
                            const float scale = s[d][2 * i + c / 2];
                            sum[i][tile][c] = fmaf(part[i][tile][c], scale, sum[i][tile][c]);
                        }
            }
        }
    }
    use_sums((float(&)[GROUPS * TILES][4])sum, [&](uint32_t i, const float (&of)[4]) {
        const uint32_t n = n0 + g + i / TILES * 16, t = t0 + i % TILES * 8 + 2 * q;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            if (n + c / 2 * 8 < p.n && t + c % 2 < p.t) store(p, t + c % 2, n + c / 2 * 8, of[c]);
        }
    });
}

// Kernels are named matmul_<rows of x>_rows_<x>_<w>; those of _narrow serve blocks of 32 columns.
// More rows of x are read by blocks of more rows of w.
#define KERNEL(NAME, BLOCKS, X, W, E, ...)                                  \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)        \
    NAME(const __grid_constant__ MatmulParams p) { few_rows<X, W, __VA_ARGS__, E>(p); }
#define MATMUL(X, W, E, END)                                            \
    KERNEL(matmul_8_rows_##X##_##W##END, 3, X, W, E, 1, 1, 2, true)    \
    KERNEL(matmul_16_rows_##X##_##W##END, 2, X, W, E, 1, 2, 4, false)  \
    KERNEL(matmul_32_rows_##X##_##W##END, 1, X, W, E, 2, 4, 2, false)  \
    KERNEL(matmul_64_rows_##X##_##W##END, 1, X, W, E, 2, 8, 1, false)
#define MATMULS(W, E, END) MATMUL(f32, W, E, END) MATMUL(f16, W, E, END) MATMUL(bf16, W, E, END)
using f32 = float;
MATMULS(f32, 4, )
MATMULS(f16, 8, )
MATMULS(bf16, 8, )
MATMULS(e4m3, 16, )
MATMULS(e4m3, 8, _narrow)
