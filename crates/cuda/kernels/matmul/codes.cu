// The kernels of codes by FP8 weights in rows, for Hopper: codes.cuh, code_tiles.cuh and large_code_tiles.cuh.
#include "large_code_tiles.cuh"

#if __CUDA_ARCH__ == 900
// Kernels are named codes_<rows>_rows_<tokens>_tokens. src/matmul/codes.rs has this table.
#define KERNEL(ROWS, TOKENS, SETS, STAGES, BEFORE)                                             \
    extern "C" __global__ void __cluster_dims__(CODES_BLOCKS)                                  \
    __launch_bounds__(32 * CodesShape<ROWS, TOKENS, SETS, STAGES>::WARPS + 32, 1)              \
    codes_##ROWS##_rows_##TOKENS##_tokens(const __grid_constant__ CodesParams p) {             \
        multiply_codes<ROWS, TOKENS, SETS, STAGES, BEFORE>(p);                                 \
    }
// As measured for V4-Flash, whose tiles of 64 rows are no more than pairs of multiprocessors, and for V4-Pro, of which a
// multiprocessor has two blocks up to 32 tokens.
KERNEL(64, 8, 2, 12, 8)
KERNEL(64, 16, 2, 10, 6)
KERNEL(64, 32, 2, 9, 6)
KERNEL(64, 64, 2, 12, 3)
KERNEL(64, 128, 2, 8, 3)
KERNEL(128, 64, 1, 8, 3)
KERNEL(128, 128, 1, 6, 4)

// Kernels are named code_tiles_<tokens>_tokens. src/matmul/code_tiles.rs has this table.
#define TILES(TOKENS, STAGES, BEFORE)                                                          \
    extern "C" __global__ void __cluster_dims__(2)                                             \
    __launch_bounds__(32 * CodeTilesShape<TOKENS, STAGES>::WARPS + 32, 1)                      \
    code_tiles_##TOKENS##_tokens(const __grid_constant__ CodeTilesParams p) {                  \
        multiply_code_tiles<TOKENS, STAGES, BEFORE>(p);                                        \
    }
TILES(64, 8, 3)
TILES(128, 6, 3)

// Of large tiles, in the same table. A warpgroup copies, as registers are dealt out among them.
#define LARGE_TILES(TOKENS, STAGES, BEFORE)                                                    \
    extern "C" __global__ void __cluster_dims__(2)                                             \
    __launch_bounds__(32 * LargeCodeTilesShape<TOKENS, STAGES>::WARPS + 128, 1)                \
    code_tiles_##TOKENS##_tokens(const __grid_constant__ CodeTilesParams p) {                  \
        multiply_large_code_tiles<TOKENS, STAGES, BEFORE>(p);                                  \
    }
LARGE_TILES(192, 5, 2)
LARGE_TILES(256, 4, 2)
#endif
