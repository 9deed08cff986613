// The kernels of packed experts with many rows, for Hopper: experts_warpgroups.cuh.
#include "experts_warpgroups.cuh"

#if __CUDA_ARCH__ == 900
extern "C" __global__ void __launch_bounds__(256) experts_gather(const __grid_constant__ GatherParams p) { gather(p); }

// Two warpgroups of 128 rows of the weight, tiles of 128 rows of x, and a ring of three stages.
using Gathered = GatheredShape<2, 2, 128, 3>;
extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(Gathered::THREADS, 1)
experts_gated_warpgroups_packed(const __grid_constant__ GatheredParams p) {
    multiply_gathered<true, Gathered, 40, 232>(p);
}
extern "C" __global__ void __cluster_dims__(2) __launch_bounds__(Gathered::THREADS, 1)
experts_down_warpgroups_packed(const __grid_constant__ GatheredParams p) {
    multiply_gathered<false, Gathered, 40, 232>(p);
}
#endif
