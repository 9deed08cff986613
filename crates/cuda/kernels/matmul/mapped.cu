// The kernels that read a weight in bf16 by a tensor map, for Hopper: mapped.cuh.
#include "mapped.cuh"

#if __CUDA_ARCH__ == 900
// Kernels are named mapped_bf16_<groups of a tile>_groups_<tokens>_tokens. src/matmul/mapped.rs has this table, and tells
// which of them are two blocks of a multiprocessor.
#define KERNEL(GROUPS, TOKENS)                                                        \
    extern "C" __global__ void                                                        \
    __launch_bounds__(32 * GROUPS + 32, GROUPS == 4 || TOKENS == 128 ? 2 : 1)         \
    mapped_bf16_##GROUPS##_groups_##TOKENS##_tokens(const __grid_constant__ MappedParams p) { \
        mapped<bf16, GROUPS, TOKENS>(p);                                              \
    }
KERNEL(4, 8)
KERNEL(4, 16)
KERNEL(4, 32)
KERNEL(4, 64)
KERNEL(4, 128)
KERNEL(8, 16)
KERNEL(8, 32)
KERNEL(8, 64)
KERNEL(8, 128)
#endif
