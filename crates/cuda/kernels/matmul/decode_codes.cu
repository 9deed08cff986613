// The kernels for few tokens that quantize x as they read it, by packed FP8 weights, for Hopper: decode.cuh.
#include "decode.cuh"

#if __CUDA_ARCH__ == 900
// The twin of `QuantizingParams` in src/launch/params.rs.
struct QuantizingParams {
    StepParams step;
    float floor;  // the least amax of a group
};
TWIN_SIZE(QuantizingParams, 104);
TWIN_FIELD(QuantizingParams, step, 0);
TWIN_FIELD(QuantizingParams, floor, 96);

// Kernels are named quantizing_<kind>_<groups>_groups_<tokens>_tokens, as those of decode.cu.
constexpr bool gated_kind = true, plain_kind = false;
#define KERNEL(KIND, GROUPS, TOKENS, RING, AHEAD, BLOCKS_OF_SM)                                       \
    extern "C" __global__ void __cluster_dims__(BLOCKS) __launch_bounds__(32 * WARPS, BLOCKS_OF_SM)    \
    quantizing_##KIND##_##GROUPS##_groups_##TOKENS##_tokens(const __grid_constant__ QuantizingParams p) { \
        decode<KIND##_kind, GROUPS, TOKENS, RING, AHEAD, true>(p.step, p.floor);                       \
    }
// src/matmul/step.rs has this table.
KERNEL(gated, 4, 1, 3, 4, 2)
KERNEL(gated, 4, 8, 3, 2, 2)
KERNEL(gated, 4, 16, 3, 2, 2)
KERNEL(gated, 6, 1, 3, 8, 1)
KERNEL(gated, 6, 8, 2, 2, 1)
KERNEL(gated, 6, 16, 2, 2, 1)
KERNEL(plain, 4, 1, 2, 2, 2)
KERNEL(plain, 4, 8, 2, 2, 2)
KERNEL(plain, 4, 16, 2, 2, 2)
KERNEL(plain, 7, 1, 2, 4, 1)
KERNEL(plain, 7, 8, 2, 2, 1)
KERNEL(plain, 7, 16, 2, 2, 1)
#endif
