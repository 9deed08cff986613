// Matmuls with many rows of x: a block makes a tile of 128 x 128 of y on tensor cores.
//
// ## Method
// 1. Stages of 32 of k of w and of x are copied to shared memory as they are stored, as many ahead as fit.
// 2. A warp makes 32 x 64 of the tile: it reads its rows, decodes and splits them in registers
//    (fragments.cuh), and multiplies.
// 3. The sum over a block of scales is multiplied by the scale and added in f32.
// 4. The tile goes through shared memory, so that side by side threads store side by side columns.
#include "matmul.cuh"

constexpr uint32_t TILE = 128, THREADS = 256;
constexpr uint32_t DEPTH = 32;          // of k in a stage
constexpr uint32_t MEMORY = 96 * 1024;  // bytes of all stages, at most
constexpr uint32_t TILE_STRIDE = TILE + 4;  // of the tile in shared memory: a warp's stores meet every bank once

template <typename X, typename W> __device__ constexpr uint32_t stages() {
    const uint32_t most = MEMORY / (TILE * DEPTH * (uint32_t)(sizeof(X) + sizeof(W)));
    return most < 8 ? most : 8;
}

// A stage of TILE rows, of which the last one stands in for those beyond it. A row's pieces of 16 bytes
// lie side by side: eight threads that read two rows meet every bank once.
template <typename T>
__device__ __forceinline__ void copy_stage(
    T* to, const void* matrix, uint64_t stride, uint32_t first, uint32_t rows, uint32_t k0, uint32_t k) {
    constexpr uint32_t LANES = 16 / sizeof(T), PIECES = DEPTH / LANES;
#pragma unroll
    for (uint32_t i = threadIdx.x; i < TILE * PIECES; i += THREADS) {
        const uint32_t row = i / PIECES, at = k0 + i % PIECES * LANES;
        const T* from = (const T*)matrix + min(first + row, rows - 1) * stride;
        // Where the row has ended nothing is read.
        copy16(to + i * LANES, from + min(at, k - LANES), at < k ? 16 : 0);
    }
}

// A warp makes 32 x 64 of the tile: 32 rows of w, half of the rows of x.
template <typename X, typename W> __device__ __forceinline__ void tiles(const MatmulParams& p) {
    using M = typename Multiplied<X, W>::Type;
    constexpr bool SCALED = sizeof(W) == 1;
    constexpr uint32_t STAGES = stages<X, W>(), STAGE = TILE * DEPTH;
    constexpr int W_WORDS = 2 * sizeof(W), X_WORDS = 2 * sizeof(X);  // of 8 elements
    constexpr int ROWS = 2, COLUMNS = TILE / 16;                     // of 16 of w and of 8 of x
    extern __shared__ __align__(16) uint8_t shared[];
    W* ws = (W*)shared;
    X* xs = (X*)(shared + STAGES * STAGE * sizeof(W));

    const uint32_t n0 = blockIdx.x * TILE, t0 = blockIdx.y * TILE;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    // Of the tile.
    const uint32_t w0 = warp % (TILE / 32) * 32 + g, x0 = warp / (TILE / 32) * (TILE / 2) + g;
    const uint32_t steps = (p.k + DEPTH - 1) / DEPTH;
    uint32_t fetched = 0, into = 0;
    const auto fetch = [&] {
        if (fetched < steps) {
            const uint32_t at = into * STAGE, k0 = fetched * DEPTH;
            copy_stage(ws + at, p.w, p.k, n0, p.n, k0, p.k);
            copy_stage(xs + at, p.x, p.x_stride, t0, p.t, k0, p.k);
        }
        ++fetched;
        into = into + 1 == STAGES ? 0 : into + 1;
        end_copies();
    };
    const float* scales[2 * ROWS];
    if constexpr (SCALED) {
#pragma unroll
        for (int i = 0; i < 2 * ROWS; ++i) scales[i] = scales_of(p, min(n0 + w0 + 8 * i, p.n - 1));
    }

    // Of the block that part is of: read long before they are needed.
    float s[2 * ROWS];
    const auto read_scales = [&](uint32_t block) {
#pragma unroll
        for (int i = 0; i < 2 * ROWS; ++i) s[i] = scales[i][min(block, p.scale_columns - 1)];
    };
    if constexpr (SCALED) read_scales(0);

    let_next_start();
    wait_for_last();
    float sum[ROWS][COLUMNS][4] = {}, part[SCALED ? ROWS : 1][SCALED ? COLUMNS : 1][4] = {};
    for (uint32_t i = 0; i < STAGES - 1; ++i) fetch();
    uint32_t from = 0;
    for (uint32_t step = 0; step < steps; ++step) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();
        fetch();
        const uint32_t at = from * STAGE, k = step * DEPTH;
        from = from + 1 == STAGES ? 0 : from + 1;
        uint32_t w[2 * ROWS][W_WORDS];
#pragma unroll
        for (int i = 0; i < 2 * ROWS; ++i) read(ws + at + (w0 + 8 * i) * DEPTH + 8 * q, w[i]);
        const Rows<M, W> a[ROWS][2] = {
            {{w[0], w[1]}, {w[0] + sizeof(W), w[1] + sizeof(W)}},
            {{w[2], w[3]}, {w[2] + sizeof(W), w[3] + sizeof(W)}},
        };
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            uint32_t x[X_WORDS];
            read(xs + at + (x0 + 8 * j) * DEPTH + 8 * q, x);
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                float(&to)[4] = SCALED ? part[SCALED ? i : 0][SCALED ? j : 0] : sum[i][j];
                add<M, X>(to, a[i][0], x);
                add<M, X>(to, a[i][1], x + sizeof(X));
            }
        }
        if constexpr (SCALED) {
            // The host takes this way where blocks of scales are whole stages.
            const uint32_t block = p.by_block.quotient(k);
            if (k + DEPTH < p.k && p.by_block.quotient(k + DEPTH) == block) continue;
#pragma unroll
            for (int i = 0; i < ROWS; ++i)
#pragma unroll
                for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        sum[i][j][c] = fmaf(part[i][j][c], s[2 * i + c / 2], sum[i][j][c]);
                        part[i][j][c] = 0.0f;
                    }
            read_scales(block + 1);
        }
    }
    // The stages are read: the tile takes their place, by rows of x.
    static_assert(STAGES * STAGE * (sizeof(X) + sizeof(W)) >= TILE * TILE_STRIDE * sizeof(float));
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    float* const tile = (float*)shared;
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j)
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                const uint32_t n = w0 + 16 * i + c / 2 * 8, t = x0 - g + 8 * j + 2 * q + c % 2;
                tile[t * TILE_STRIDE + n] = sum[i][j][c];
            }
    __syncthreads();
    const uint32_t n = threadIdx.x % TILE;
    if (n0 + n >= p.n) return;
#pragma unroll 4
    for (uint32_t t = threadIdx.x / TILE; t < min(TILE, p.t - t0); t += THREADS / TILE) {
        store(p, t0 + t, n0 + n, tile[t * TILE_STRIDE + n]);
    }
}

// Kernels are named matmul_tiles_<x>_<w>.
#define KERNEL(X, W)                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)            \
    matmul_tiles_##X##_##W(const __grid_constant__ MatmulParams p) { tiles<X, W>(p); }
#define MATMULS(W) KERNEL(f32, W) KERNEL(f16, W) KERNEL(bf16, W)
using f32 = float;
MATMULS(f32)
MATMULS(f16)
MATMULS(bf16)
MATMULS(e4m3)
