// The kernels of packed FP8 weights, for Hopper: decode.cuh and packed_rows.cuh.
#include "decode.cuh"
#include "packed_rows.cuh"

#if __CUDA_ARCH__ == 900
// Kernels are named decode_<kind>_<groups>_groups_<tokens>_tokens: `gated` activates, `plain` does not.
constexpr bool gated_kind = true, plain_kind = false;
#define KERNEL(KIND, GROUPS, TOKENS, RING, AHEAD, BLOCKS_OF_SM)                                    \
    extern "C" __global__ void __cluster_dims__(BLOCKS) __launch_bounds__(32 * WARPS, BLOCKS_OF_SM) \
    decode_##KIND##_##GROUPS##_groups_##TOKENS##_tokens(const __grid_constant__ StepParams p) {   \
        decode<KIND##_kind, GROUPS, TOKENS, RING, AHEAD>(p);                                        \
    }
// As measured for V4-Flash (4 groups), V4.1-Flash (5) and V4-Pro (6 and 7): rings of both matmuls that fit
// on a multiprocessor side by side where that is faster. src/matmul/step.rs has this table.
KERNEL(gated, 4, 1, 3, 4, 2)
KERNEL(gated, 4, 8, 3, 2, 2)
KERNEL(gated, 4, 16, 2, 2, 2)
KERNEL(gated, 4, 32, 3, 1, 1)
KERNEL(gated, 5, 1, 3, 5, 2)
KERNEL(gated, 5, 8, 3, 1, 2)
KERNEL(gated, 5, 16, 2, 1, 1)
KERNEL(gated, 6, 1, 3, 7, 1)
KERNEL(gated, 6, 8, 2, 2, 1)
KERNEL(gated, 6, 16, 2, 1, 1)
KERNEL(plain, 4, 1, 2, 2, 2)
KERNEL(plain, 4, 8, 2, 2, 2)
KERNEL(plain, 4, 16, 2, 2, 2)
KERNEL(plain, 4, 32, 2, 1, 1)
KERNEL(plain, 5, 1, 2, 3, 2)
KERNEL(plain, 5, 8, 2, 1, 2)
KERNEL(plain, 5, 16, 2, 1, 1)
KERNEL(plain, 7, 1, 2, 6, 1)
KERNEL(plain, 7, 8, 2, 2, 1)
KERNEL(plain, 7, 16, 2, 1, 1)

// And matmul_<rows of x>_rows_<x>_packed, as in matmul_rows.cu.
#define ROWS(NAME, BLOCKS_OF_SM, X, ...)                                     \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS_OF_SM)   \
    NAME(const __grid_constant__ PackedParams p) { few_rows<X, __VA_ARGS__>(p); }
#define MATMUL(X)                                           \
    ROWS(matmul_8_rows_##X##_packed, 3, X, 1, 1, 2, true)   \
    ROWS(matmul_16_rows_##X##_packed, 2, X, 1, 2, 4, false) \
    ROWS(matmul_32_rows_##X##_packed, 1, X, 2, 4, 2, false) \
    ROWS(matmul_64_rows_##X##_packed, 1, X, 2, 8, 1, false)
using f32 = float;
MATMUL(f32)
MATMUL(f16)
MATMUL(bf16)

extern "C" __global__ void __launch_bounds__(32 * WARPS)
unpack_e4m3(const __grid_constant__ PackedParams p) { unpack(p); }
extern "C" __global__ void __launch_bounds__(32 * WARPS)
unpack_e4m3_to_bf16(const __grid_constant__ PackedParams p) { unpack_to_bf16(p); }
#endif
