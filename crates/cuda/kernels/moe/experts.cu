// Matmuls of routed experts with few rows each, as fast as their weights are read; and those of any types and
// alignment, whose sums have one order.
//
// ## Method
// 1. A block has 16 rows of a weight, and a tile of 8 to 64 rows of x; its eight warps have different k.
// 2. A thread takes 16 bytes of a row at a time, several steps of k before the first is multiplied: of FP4 these
//    are 32 codes, which share a scale.
// 3. Of FP8 the sum over a block of scales is multiplied by the scale and added in f32.
// 4. The warps' sums are added in an order that does not change, and stored (experts.cuh).
#include "experts.cuh"
#include "packed.cuh"

// TILES times 8 rows of x; DEPTH steps of w are read before the first is multiplied.
template <bool GATED, typename W, int TILES, int DEPTH>
__device__ __forceinline__ void few_rows(const ExpertsParams& p) {
    using C = Codes<W>;
    constexpr bool FP4 = C::BITS == 4, FP8 = C::BITS == 8;
    constexpr uint32_t E = 128 / C::BITS, STEP = 4 * E, ROWS = 8 * TILES;
    extern __shared__ __align__(16) uint32_t ends[];

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const uint64_t row_bytes = (uint64_t)p.k * C::BITS / 8;
    begin();
    const uint32_t items = count_tiles<ROWS>(p, ends) * p.pieces;
    for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
        const uint32_t of = p.by_pieces.quotient(item), group = item - of * p.pieces;
        const ExpertTile tile = ExpertTile::find<ROWS>(p, ends, of);
        const uint8_t* w[2];
        const uint8_t* bytes[2];
        const float* scales[2];
        const bf16* x[TILES];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const uint32_t n = weight_row<GATED>(p, group, g + 8 * i);
            w[i] = p.w + tile.expert * p.w_stride + n * row_bytes;
            if constexpr (FP4) bytes[i] = fp4_scales(p, tile.expert, n);
            if constexpr (FP8) scales[i] = fp8_scales(p, tile.expert, n);
        }
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            // Beyond the last row the last one stands in, and its results are not stored.
            const uint32_t row = tile.row + min(8 * i + g, tile.rows - 1);
            x[i] = (const bf16*)p.x + x_row<GATED>(p, row);
        }
        float sum[TILES][4] = {};
        for (uint32_t first = warp * STEP; first < p.k; first += DEPTH * WARPS * STEP) {
            uint32_t ws[DEPTH][2][4] = {}, s[DEPTH][2] = {};
            float f[DEPTH][2];
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                const uint32_t k = first + d * WARPS * STEP + E * q;
                if (k >= p.k) continue;
#pragma unroll
                for (int i = 0; i < 2; ++i) read(w[i] + (uint64_t)k * C::BITS / 8, ws[d][i]);
            }
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                const uint32_t k0 = first + d * WARPS * STEP, k = k0 + E * q;
                if (k0 >= p.k) continue;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    if constexpr (FP4) s[d][i] = k < p.k ? bytes[i][k / 32] : 0;
                    if constexpr (FP8) f[d][i] = scales[i][p.by_block.quotient(k0)];
                }
            }
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                const uint32_t k0 = first + d * WARPS * STEP, k = k0 + E * q;
                if (k0 >= p.k) break;
                float part[TILES][4] = {};
                float(&to)[TILES][4] = FP8 ? part : sum;
                const uint32_t low_scale = FP4 ? power2(s[d][0]) : 0, high_scale = FP4 ? power2(s[d][1]) : 0;
#pragma unroll
                for (uint32_t j = 0; j < E / 8; ++j) {
                    uint32_t low[4], high[4];
                    C::eight(ws[d][0] + j * C::BITS / 4, low_scale, low);
                    C::eight(ws[d][1] + j * C::BITS / 4, high_scale, high);
#pragma unroll
                    for (int i = 0; i < TILES; ++i) {
                        uint32_t words[4] = {}, b[4];
                        if (k < p.k) read(x[i] + k + 8 * j, words);
                        C::arrange(words, b);
                        add_eight(to[i], low, high, b);
                    }
                }
                if constexpr (FP8) {
#pragma unroll
                    for (int i = 0; i < TILES; ++i)
#pragma unroll
                        for (int c = 0; c < 4; ++c) sum[i][c] = fmaf(part[i][c], f[d][c / 2], sum[i][c]);
                }
            }
        }
        sum_warps((float(&)[TILES * 4])sum);
        if (warp != 0) continue;
#pragma unroll
        for (int i = 0; i < TILES; ++i)
#pragma unroll
            for (uint32_t c = 0; c < 2; ++c) {
                const uint32_t of_tile = 8 * i + 2 * q + c;
                if (of_tile >= tile.rows) continue;
                const uint32_t row = tile.row + of_tile;
                store_group<GATED>(p, row, group, g, sum[i][c], sum[i][c + 2], route_weight<GATED>(p, row));
            }
    }
}

// Kernels are named experts_<half>_<rows>_rows_<weight>.
#define KERNEL(HALF, GATED, W, ROWS, BLOCKS, DEPTH)                            \
    extern "C" __global__ void __launch_bounds__(EXPERT_THREADS, BLOCKS)       \
    experts_##HALF##_##ROWS##_rows_##W(const __grid_constant__ ExpertsParams p) { \
        few_rows<GATED, W, ROWS / 8, DEPTH>(p);                                \
    }
#define HALVES(W, ROWS, BLOCKS, DEPTH)               \
    KERNEL(gated, true, W, ROWS, BLOCKS, DEPTH)      \
    KERNEL(down, false, W, ROWS, BLOCKS, DEPTH)
HALVES(e2m1, 8, 3, 4)
HALVES(e2m1, 32, 2, 1)
HALVES(e4m3, 8, 3, 4)
HALVES(e4m3, 32, 2, 2)
HALVES(bf16, 8, 3, 4)
HALVES(bf16, 32, 2, 2)

// A code of E2M1 times its scale's byte.
__device__ __forceinline__ float e2m1_value(uint32_t code, uint32_t scale) {
    // 0, 0.5, 1, 1.5, 2, 3, 4, 6: as the end of an exponent and the first of a mantissa.
    const float value = __uint_as_float((code & 7) << 22) * 0x1p126f;
    return (code & 8 ? -value : value) * power(scale);
}

// One number of a weight, of any format: code times scale, in f32.
template <bool GATED>
__device__ __forceinline__ float any_weight(const ExpertsParams& p, uint32_t expert, uint32_t row, uint32_t k) {
    const uint8_t* const w = p.w + expert * p.w_stride;
    const uint64_t at = (uint64_t)row * p.k + k;
    switch (p.format) {
        case W_F32: return ((const float*)w)[at];
        case W_F16: return widen(((const f16*)w)[at]);
        case W_BF16: return widen(((const bf16*)w)[at]);
        case W_E4M3: return widen(((const e4m3*)w)[at]) * fp8_scales(p, expert, row)[p.by_block.quotient(k)];
        case W_E2M1: return e2m1_value(w[at / 2] >> 4 * (at % 2) & 15, fp4_scales(p, expert, row)[k / 32]);
        default: {
            const bool up = GATED && row >= p.outputs;
            const uint32_t j = up ? row - p.outputs : row, group_rows = GATED ? 8 : 16;
            const uint32_t in_group = j % group_rows + (up ? 8 : 0);
            const uint64_t unit = (uint64_t)(j / group_rows) * (p.k / PACKED_K) + k / PACKED_K;
            const uint8_t* const from = w + unit * PACKED_UNIT;
            const uint32_t word = *(const uint32_t*)(from + packed_word(in_group, k));
            return e2m1_value(unpack_code(word, k % 8), from[packed_scale(in_group, k)] - PACKED_BIAS & 255);
        }
    }
}
template <bool GATED>
__device__ __forceinline__ float any_x(const ExpertsParams& p, uint64_t at) {
    if (!GATED || p.x_type == Y_BF16) return widen(((const bf16*)p.x)[at]);
    return p.x_type == Y_F32 ? ((const float*)p.x)[at] : widen(((const f16*)p.x)[at]);
}

// An output is one chain of f32 fused multiply-adds from zero, over k in ascending order, as in matmul.cu. A block
// makes 32 outputs of eight rows, 32 of k at a time.
template <bool GATED> __device__ __forceinline__ void any_rows(const ExpertsParams& p) {
    constexpr uint32_t OUTPUTS = 32, ROWS = 8, DEPTH = 32, HALVES = GATED ? 2 : 1;
    __shared__ float ws[HALVES][OUTPUTS][DEPTH + 1], xs[ROWS][DEPTH];
    extern __shared__ __align__(16) uint32_t ends[];
    const uint32_t of_row = threadIdx.x % OUTPUTS, of_tile = threadIdx.x / OUTPUTS;
    begin();
    const uint32_t items = count_tiles<ROWS>(p, ends) * p.pieces;
    for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
        const uint32_t of = p.by_pieces.quotient(item), n0 = (item - of * p.pieces) * OUTPUTS;
        const ExpertTile tile = ExpertTile::find<ROWS>(p, ends, of);
        float sum[HALVES] = {};
        for (uint32_t k0 = 0; k0 < p.k; k0 += DEPTH) {
            const uint32_t depth = min(DEPTH, p.k - k0);
            for (uint32_t i = threadIdx.x; i < HALVES * OUTPUTS * DEPTH; i += EXPERT_THREADS) {
                const uint32_t c = i % DEPTH, n = i / DEPTH % OUTPUTS, half = i / DEPTH / OUTPUTS;
                const uint32_t row = min(n0 + n, p.outputs - 1) + half * p.outputs;
                if (c < depth) ws[half][n][c] = any_weight<GATED>(p, tile.expert, row, k0 + c);
            }
            const uint32_t c = threadIdx.x % DEPTH, row = threadIdx.x / DEPTH;
            if (c < depth && row < tile.rows) xs[row][c] = any_x<GATED>(p, x_row<GATED>(p, tile.row + row) + k0 + c);
            __syncthreads();
            if (of_tile < tile.rows) {
                for (uint32_t c = 0; c < depth; ++c) {
#pragma unroll
                    for (uint32_t half = 0; half < HALVES; ++half) {
                        sum[half] = fmaf(xs[of_tile][c], ws[half][of_row][c], sum[half]);
                    }
                }
            }
            __syncthreads();
        }
        const uint32_t n = n0 + of_row, row = tile.row + of_tile;
        if (of_tile >= tile.rows || n >= p.outputs) continue;
        bf16* const y = p.y + row * p.y_stride + n;
        if constexpr (GATED) *y = activated(p.form, sum[0], sum[1], p.weights[p.sorted[row]], p.scalars);
        else *y = narrow<bf16>(sum[0]);
    }
}
extern "C" __global__ void __launch_bounds__(EXPERT_THREADS)
experts_gated_any(const __grid_constant__ ExpertsParams p) { any_rows<true>(p); }
extern "C" __global__ void __launch_bounds__(EXPERT_THREADS)
experts_down_any(const __grid_constant__ ExpertsParams p) { any_rows<false>(p); }
