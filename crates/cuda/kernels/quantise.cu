// A matrix to codes and scales, and back.
#include "quantise.cuh"
#include <cuda_fp8.h>

template <typename T, bool VECTOR> __device__ __forceinline__ void quantise(const QuantParams& p) {
    constexpr int N = per_thread<T>();
    const Place at = place<N>(p);
    const uint64_t from = at.row * p.input_stride + at.column;
    begin();
    float y[N] = {};
    if constexpr (VECTOR) {
        if (at.count > 0) widen_all(load<T, N>(p.gate, from), y);
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (j < at.count) y[j] = widen(((const T*)p.gate)[from + j]);
        }
    }
    write_quantised<N, VECTOR>(p, at, y);
}

// code * scale, rounded once.
template <typename T> __device__ __forceinline__ T product_of(float code, float scale, bool exact) {
    // Under a power of two the product is one of f32, and in f32 it is rounded here.
    if (exact || sizeof(T) == 4) return narrow<T>(code * scale);
    return narrow<T>((double)code * scale);
}

__device__ __forceinline__ float scale_at(const QuantParams& p, uint32_t row, uint32_t group) {
    const uint64_t word = row * p.scale_row + (group >> p.word_log) * p.scale_word;
    const uint64_t at = word + (group & ((1u << p.word_log) - 1));
    return p.power_of_two ? power(((const uint8_t*)p.scales)[at]) : ((const float*)p.scales)[at];
}

// Scales as cublasLt takes them: f32s, those of a group of columns one after another. Here
// `row_threads` are the rows.
extern "C" __global__ void __launch_bounds__(1024)
scales_to_f32_columns(const __grid_constant__ QuantParams p) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    begin();
    if (i >= p.threads) return;
    const uint32_t group = p.by_row.quotient(i);
    ((float*)p.gate)[i] = scale_at(p, i - group * p.row_threads, group);
}

// The way back: `gate` is what is written, with `input_stride`.
template <typename T, bool VECTOR> __device__ __forceinline__ void dequantise(const QuantParams& p) {
    constexpr int N = per_thread<T>();
    const Place at = place<N>(p);
    begin();
    if (at.count == 0) return;
    const float scale = scale_at(p, at.row, at.group);
    const uint8_t* from = p.codes + at.row * p.codes_stride + at.column;
    T* to = (T*)p.gate + at.row * p.input_stride + at.column;
    const auto value = [&](uint8_t code) {
        __nv_fp8_e4m3 e4m3;
        e4m3.__x = code;
        return product_of<T>((float)e4m3, scale, p.power_of_two);
    };
    if constexpr (VECTOR) {
        const auto codes = load<uint8_t, N>(from, 0);
        Vector<T, N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) out.x[j] = value(codes.x[j]);
        *(Vector<T, N>*)to = out;
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (j < at.count) to[j] = value(from[j]);
        }
    }
}

// Kernels are named quantise_<type>_<access> and dequantise_<type>_<access>.
#define KERNELS(T, ACCESS, VECTOR)                                                              \
    extern "C" __global__ void __launch_bounds__(1024)                                          \
    quantise_##T##_##ACCESS(const __grid_constant__ QuantParams p) { quantise<T, VECTOR>(p); }   \
    extern "C" __global__ void __launch_bounds__(1024)                                          \
    dequantise_##T##_##ACCESS(const __grid_constant__ QuantParams p) { dequantise<T, VECTOR>(p); }
using f32 = float;
#define ACCESSES(T) KERNELS(T, element, false) KERNELS(T, 16bytes, true)
ACCESSES(f32)
ACCESSES(f16)
ACCESSES(bf16)
