// Matmuls of routed experts with many rows: a block makes a tile of 128 rows of a weight by 64 rows of x on tensor
// cores.
//
// ## Method
// 1. Stages of 32 of k of w and of x are copied to shared memory as they are stored, as many ahead as there are.
// 2. A warp makes 32 x 32 of the tile: it reads its rows, decodes them in registers (experts.cuh), and multiplies.
// 3. Of FP4 32 of k of a row share a scale, which goes in when they are decoded. Of FP8 the sum over a block of scales
//    is multiplied by the scale and added in f32.
#include "experts.cuh"

constexpr uint32_t W_TILE = 128, X_TILE = 64, DEPTH = 32, STAGES = 6;
constexpr int GROUPS = 2, COLUMNS = 4;  // of a warp: of 16 rows of w, of 8 rows of x

template <bool GATED, typename W> __device__ __forceinline__ void tiles(const ExpertsParams& p) {
    using C = Codes<W>;
    constexpr bool FP4 = C::BITS == 4, FP8 = C::BITS == 8;
    constexpr uint32_t W_ROW = DEPTH * C::BITS / 8, X_ROW = DEPTH * 2;  // bytes
    constexpr uint32_t PIECES = W_ROW / 16, COPIES = (W_TILE * PIECES + EXPERT_THREADS - 1) / EXPERT_THREADS;
    constexpr uint32_t STAGE = W_TILE * W_ROW + X_TILE * X_ROW;
    static_assert(X_TILE * X_ROW == 16 * EXPERT_THREADS, "a thread copies one piece of x");
    extern __shared__ __align__(16) uint8_t shared[];
    uint32_t* const ends = (uint32_t*)(shared + STAGES * STAGE);

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    // Of the tile.
    const uint32_t group0 = warp % 4 * GROUPS, column0 = warp / 4 * COLUMNS * 8;
    const uint64_t row_bytes = (uint64_t)p.k * C::BITS / 8;
    const uint32_t steps = (p.k + DEPTH - 1) / DEPTH;
    begin();
    const uint32_t items = count_tiles<X_TILE>(p, ends) * p.pieces;
    for (uint32_t item = blockIdx.x; item < items; item += gridDim.x) {
        const uint32_t of = p.by_pieces.quotient(item), first_group = (item - of * p.pieces) * (W_TILE / 16);
        const ExpertTile tile = ExpertTile::find<X_TILE>(p, ends, of);
        const uint8_t* const w = p.w + tile.expert * p.w_stride;

        // What this thread copies of each stage; of rows beyond the last the last one.
        const uint8_t* w_from[COPIES];
#pragma unroll
        for (uint32_t i = 0; i < COPIES; ++i) {
            const uint32_t row = (threadIdx.x + i * EXPERT_THREADS) / PIECES;
            w_from[i] = w + weight_row<GATED>(p, first_group + row / 16, row % 16) * row_bytes;
        }
        const uint32_t x_of_thread = min(threadIdx.x / 4, tile.rows - 1);
        const bf16* const x_from = (const bf16*)p.x + x_row<GATED>(p, tile.row + x_of_thread);
        uint32_t fetched = 0, into = 0;
        const auto fetch = [&] {
            if (fetched < steps) {
                uint8_t* const to = shared + into * STAGE;
#pragma unroll
                for (uint32_t i = 0; i < COPIES; ++i) {
                    const uint32_t piece = threadIdx.x + i * EXPERT_THREADS;
                    const uint64_t at = (uint64_t)fetched * W_ROW + piece % PIECES * 16;
                    // Where the row has ended nothing is read.
                    const bool there = at < row_bytes;
                    if (piece < W_TILE * PIECES) copy16(to + piece * 16, w_from[i] + (there ? at : 0), there ? 16 : 0);
                }
                const uint32_t at = fetched * DEPTH + threadIdx.x % 4 * 8;
                const bool there = at < p.k;
                copy16(to + W_TILE * W_ROW + threadIdx.x * 16, x_from + (there ? at : 0), there ? 16 : 0);
            }
            ++fetched;
            into = into + 1 == STAGES ? 0 : into + 1;
            end_copies();
        };

        // The scales of this thread's rows: of FP4 those of the next step, of FP8 those of the block that part is
        // of. They are read long before they are needed.
        const uint8_t* bytes[2 * GROUPS];
        const float* scales[2 * GROUPS];
        uint32_t next[2 * GROUPS] = {};
        float s[2 * GROUPS];
        const auto read_bytes = [&](uint32_t step) {
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; ++i) next[i] = bytes[i][min(step, steps - 1)];
        };
        const auto read_scales = [&](uint32_t block) {
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; ++i) s[i] = scales[i][min(block, p.scale_columns - 1)];
        };
#pragma unroll
        for (uint32_t i = 0; i < 2 * GROUPS; ++i) {
            const uint32_t row = weight_row<GATED>(p, first_group + group0 + i / 2, g + i % 2 * 8);
            if constexpr (FP4) bytes[i] = fp4_scales(p, tile.expert, row);
            if constexpr (FP8) scales[i] = fp8_scales(p, tile.expert, row);
        }
        for (uint32_t i = 0; i < STAGES - 1; ++i) fetch();
        if constexpr (FP4) read_bytes(0);
        if constexpr (FP8) read_scales(0);

        float sum[GROUPS][COLUMNS][4] = {}, part[FP8 ? GROUPS : 1][FP8 ? COLUMNS : 1][4] = {};
        uint32_t from = 0;
        for (uint32_t step = 0; step < steps; ++step) {
            wait_for_copies<STAGES - 2>();
            __syncthreads();
            fetch();
            const uint8_t* const stage = shared + from * STAGE;
            from = from + 1 == STAGES ? 0 : from + 1;
            uint32_t low[GROUPS][4], high[GROUPS][4];
#pragma unroll
            for (uint32_t i = 0; i < GROUPS; ++i) {
                const uint8_t* const row = stage + ((group0 + i) * 16 + g) * W_ROW + q * C::BITS;
                uint32_t a[C::BITS / 4], b[C::BITS / 4];
                read_codes(row, a), read_codes(row + 8 * W_ROW, b);
                C::eight(a, FP4 ? power2(next[2 * i]) : 0, low[i]);
                C::eight(b, FP4 ? power2(next[2 * i + 1]) : 0, high[i]);
            }
            if constexpr (FP4) read_bytes(step + 1);
            const uint8_t* const xs = stage + W_TILE * W_ROW;
#pragma unroll
            for (uint32_t j = 0; j < COLUMNS; ++j) {
                uint32_t words[4], x[4];
                read(xs + (column0 + 8 * j + g) * X_ROW + q * 16, words);
                C::arrange(words, x);
#pragma unroll
                for (uint32_t i = 0; i < GROUPS; ++i) {
                    add_eight(FP8 ? part[FP8 ? i : 0][FP8 ? j : 0] : sum[i][j], low[i], high[i], x);
                }
            }
            if constexpr (FP8) {
                // The host takes this way where blocks of scales are whole stages.
                const uint32_t k = step * DEPTH, block = p.by_block.quotient(k);
                if (k + DEPTH < p.k && p.by_block.quotient(k + DEPTH) == block) continue;
#pragma unroll
                for (int i = 0; i < GROUPS; ++i)
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
        // Before the next item's first stages come.
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < GROUPS; ++i)
#pragma unroll
            for (uint32_t j = 0; j < COLUMNS; ++j)
#pragma unroll
                for (uint32_t c = 0; c < 2; ++c) {
                    const uint32_t of_tile = column0 + 8 * j + 2 * q + c;
                    if (of_tile >= tile.rows) continue;
                    const uint32_t group = first_group + group0 + i;
                    const uint32_t row = tile.row + of_tile;
                    store_group<GATED>(p, row, group, g, sum[i][j][c], sum[i][j][c + 2], route_weight<GATED>(p, row));
                }
    }
}

// Kernels are named experts_<half>_tiles_<weight>.
#define KERNEL(HALF, GATED, W)                                                \
    extern "C" __global__ void __launch_bounds__(EXPERT_THREADS, 2)           \
    experts_##HALF##_tiles_##W(const __grid_constant__ ExpertsParams p) { tiles<GATED, W>(p); }
#define HALVES(W) KERNEL(gated, true, W) KERNEL(down, false, W)
HALVES(e2m1)
HALVES(e4m3)
HALVES(bf16)
