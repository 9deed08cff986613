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

// A thread has N elements side by side of every gridDim.y-th row: one, or as many as 16 bytes of the output hold.
template <typename T, int N> __device__ __forceinline__ void round_rows(const RoundParams& p) {
    const uint32_t column = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    begin();
    if (column >= p.columns) return;
    for (uint32_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
        const float* from = p.from + row * p.from_stride + column;
        T* to = (T*)p.to + row * p.to_stride + column;
        if constexpr (N == 1) {
            *to = narrow<T>(*from);
        } else {
            float x[N];
#pragma unroll
            for (int j = 0; j < N; j += 4) *(Vector<float, 4>*)(x + j) = load<float, 4>(from, j);
            Vector<T, N> out;
#pragma unroll
            for (int j = 0; j < N; ++j) out.x[j] = narrow<T>(x[j]);
            *(Vector<T, N>*)to = out;
        }
    }
}

// Kernels are named round_<type>, of single elements, and round_<type>_vectors.
using f32 = float;
#define KERNEL(NAME, T, N)                             \
    extern "C" __global__ void __launch_bounds__(256)  \
    NAME(const __grid_constant__ RoundParams p) {      \
        round_rows<T, N>(p);                           \
    }
#define BOTH(T)                                        \
    KERNEL(round_##T, T, 1)                            \
    KERNEL(round_##T##_vectors, T, 16 / (int)sizeof(T))
BOTH(f32)
BOTH(f16)
BOTH(bf16)
