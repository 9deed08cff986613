// Sums over ranks, in f32, rounded once to another type.
#include "../common/memory.cuh"

struct RoundParams {
    const float* from;
    void* to;
    uint64_t from_stride, to_stride;
    uint32_t rows, columns;
};
TWIN_SIZE(RoundParams, 40);
TWIN_FIELD(RoundParams, from, 0);
TWIN_FIELD(RoundParams, to, 8);
TWIN_FIELD(RoundParams, from_stride, 16);
TWIN_FIELD(RoundParams, to_stride, 24);
TWIN_FIELD(RoundParams, rows, 32);
TWIN_FIELD(RoundParams, columns, 36);

// A thread has an element in every gridDim.y-th row: the sums are written once and read once, and
// the reduction before took longer than this.
template <typename T> __device__ __forceinline__ void round_rows(const RoundParams& p) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    begin();
    if (column >= p.columns) return;
    for (uint32_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
        const float sum = p.from[row * p.from_stride + column];
        ((T*)p.to)[row * p.to_stride + column] = narrow<T>(sum);
    }
}

using f32 = float;
#define KERNEL(T)                                          \
    extern "C" __global__ void __launch_bounds__(256)      \
    round_##T(const __grid_constant__ RoundParams p) {     \
        round_rows<T>(p);                                  \
    }
KERNEL(f32)
KERNEL(f16)
KERNEL(bf16)
