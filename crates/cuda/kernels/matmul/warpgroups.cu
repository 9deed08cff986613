// The kernels of warpgroups by packed FP8 weights, for Hopper: warpgroups.cuh.
#include "warpgroups.cuh"

#if __CUDA_ARCH__ == 900
// Kernels are named warpgroups_<kind>_<streams>x<slots>_<tokens>_tokens_<blocks>_blocks: `gated` activates, `plain`
// does not. src/matmul/warpgroups.rs has this table.
constexpr bool gated_kind = true, plain_kind = false;
#define KERNEL(KIND, STREAMS, SLOTS, TOKENS, BLOCKS, STAGES, REGISTERS, BLOCKS_OF_SM)                                \
    extern "C" __global__ void __cluster_dims__(BLOCKS)                                                             \
    __launch_bounds__(32 * STREAMS * SLOTS + (REGISTERS ? 128 : 64), BLOCKS_OF_SM)                                  \
    warpgroups_##KIND##_##STREAMS##x##SLOTS##_##TOKENS##_tokens_##BLOCKS##_blocks(                                  \
        const __grid_constant__ WarpgroupParams p) {                                                                \
        warpgroups<KIND##_kind, STREAMS, SLOTS, TOKENS, BLOCKS, STAGES, REGISTERS>(p);                              \
    }
#define KERNELS(...) KERNEL(gated, __VA_ARGS__) KERNEL(plain, __VA_ARGS__)
KERNELS(1, 4, 32, 2, 12, 0, 2)
KERNELS(1, 4, 64, 2, 8, 0, 2)
KERNELS(1, 4, 128, 2, 8, 0, 1)
KERNELS(2, 4, 128, 2, 8, 0, 1)
KERNELS(2, 4, 256, 2, 4, 232, 1)
KERNELS(2, 4, 256, 1, 5, 232, 1)
KERNELS(1, 8, 32, 2, 14, 0, 1)
KERNELS(1, 8, 64, 2, 12, 0, 1)
KERNELS(1, 8, 128, 2, 8, 0, 1)
KERNELS(2, 6, 128, 2, 6, 0, 1)
KERNELS(2, 6, 128, 1, 7, 0, 1)
KERNELS(1, 8, 256, 2, 4, 232, 1)
KERNELS(1, 8, 256, 1, 5, 232, 1)
#endif
