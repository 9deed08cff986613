// A matrix to codes and scales, and back.
#include "quantize.cuh"
#include <cuda_fp8.h>

template <typename T, typename P, bool ALIGNED>
__device__ __forceinline__ void quantize(const QuantParams& p) {
    constexpr int N = P::N, VECTORS = P::VECTORS;
    const Place<N> at = place<N, VECTORS>(p);
    const Target to = Target::of<Known::Nothing>(p, at);
    const uint64_t from = at.row * p.gate_stride + at.column;
    begin();
    float y[VECTORS][N] = {};
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const uint32_t count = at.count(v);
        const uint64_t place = from + v * at.step;
        if constexpr (ALIGNED) {
            if (count > 0) widen_all(load<T, N>(p.gate, place), y[v]);
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) {
                if (j < count) y[v][j] = widen(((const T*)p.gate)[place + j]);
            }
        }
    }
    write_quantized<N, VECTORS, ALIGNED, Known::Nothing>(p, at, to, (float(&)[N * VECTORS])y);
}

// code * scale, rounded once.
template <typename T> __device__ __forceinline__ T product_of(float code, float scale, bool exact) {
    // Under a power of two the product is one of f32, and in f32 it is rounded here.
    if (exact || sizeof(T) == 4) return narrow<T>(code * scale);
    return narrow<T>((double)code * scale);
}

__device__ __forceinline__ float scale_of(const QuantParams& p, const void* at) {
    return p.power_of_two ? power(*(const uint8_t*)at) : *(const float*)at;
}

// Scales as cublasLt takes them: f32s, those of a group of columns one after another. Here
// `row_threads` are the rows.
extern "C" __global__ void __launch_bounds__(1024)
scales_to_f32_columns(const __grid_constant__ QuantParams p) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    begin();
    if (i >= p.threads) return;
    const uint32_t group = p.by_row.quotient(i);
    const uint32_t row = i - group * p.row_threads, words = 1u << p.word_log;
    const uint64_t word = row * p.scale_row + (group >> p.word_log) * p.scale_word;
    const uint64_t scale = word + (group & (words - 1));
    ((float*)p.gate)[i] = scale_of(p, (const uint8_t*)p.scales + (p.power_of_two ? scale : 4 * scale));
}

// The way back: `gate` is what is written, with `gate_stride`.
template <typename T, typename P, bool ALIGNED>
__device__ __forceinline__ void dequantize(const QuantParams& p) {
    constexpr int N = P::N, VECTORS = P::VECTORS;
    const Place<N> at = place<N, VECTORS>(p);
    const Target source = Target::of<Known::Nothing>(p, at);
    begin();
    if (at.left == 0) return;
    const float scale = scale_of(p, source.scale);
    const auto value = [&](uint8_t code) {
        __nv_fp8_e4m3 e4m3;
        e4m3.__x = code;
        return product_of<T>((float)e4m3, scale, p.power_of_two);
    };
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const uint32_t count = at.count(v), column = at.column + v * at.step;
        const uint8_t* from = source.codes + v * at.step;
        T* to = (T*)p.gate + at.row * p.gate_stride + column;
        if constexpr (ALIGNED) {
            if (count == 0) continue;
            const auto codes = load<uint8_t, N>(from, 0);
            Vector<T, N> out;
#pragma unroll
            for (int j = 0; j < N; ++j) out.x[j] = value(codes.x[j]);
            *(Vector<T, N>*)to = out;
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) {
                if (j < count) to[j] = value(from[j]);
            }
        }
    }
}

// Kernels are named quantize_<type>_<access> and dequantize_<type>_<access>.
#define KERNEL(T, ACCESS, ELEMENTS, ALIGNED)                                    \
    extern "C" __global__ void __launch_bounds__(1024)                          \
    quantize_##T##_##ACCESS(const __grid_constant__ QuantParams p) {            \
        quantize<T, Part<T, ELEMENTS>, ALIGNED>(p);                             \
    }                                                                           \
    extern "C" __global__ void __launch_bounds__(1024)                          \
    dequantize_##T##_##ACCESS(const __grid_constant__ QuantParams p) {          \
        dequantize<T, Part<T, ELEMENTS>, ALIGNED>(p);                           \
    }
using f32 = float;
#define ACCESSES(T)              \
    KERNEL(T, element, 4, false) \
    KERNEL(T, vectors, 8, true)
ACCESSES(f32)
ACCESSES(f16)
ACCESSES(bf16)

// Of many numbers a thread has more.
#define MANY(T)                                                                 \
    extern "C" __global__ void __launch_bounds__(512, 4)                        \
    quantize_##T##_many(const __grid_constant__ QuantParams p) {                \
        quantize<T, Part<T, 16>, true>(p);                                      \
    }
MANY(f16)
MANY(bf16)
