// What the kernels of products share: y = x * w^T.
#pragma once
#include "fragments.cuh"
#include "memory.cuh"

enum YType : uint32_t { Y_F32, Y_F16, Y_BF16 };

// The twin of `ProductParams` in src/params.rs.
struct ProductParams {
    const void* x;
    const void* w;
    void* y;
    const float* scales;           // [scale rows, scale_columns], FP8 alone
    const uint32_t* scale_rows;    // the row of scales of each row of w
    uint64_t x_stride, y_stride;   // elements
    uint32_t t, n, k;
    uint32_t scale_columns;
    Divisor by_block;              // by the columns of a block of scales
    uint32_t y_type;
};

__device__ __forceinline__ float widen(e4m3 x) { return (float)x; }

__device__ __forceinline__ void store(const ProductParams& p, uint32_t t, uint32_t n, float v) {
    const uint64_t at = t * p.y_stride + n;
    if (p.y_type == Y_F32) ((float*)p.y)[at] = narrow<float>(v);
    else if (p.y_type == Y_F16) ((f16*)p.y)[at] = narrow<f16>(v);
    else ((bf16*)p.y)[at] = narrow<bf16>(v);
}

// The scales of a row of w.
__device__ __forceinline__ const float* scales_of(const ProductParams& p, uint32_t n) {
    return p.scales + (uint64_t)p.scale_rows[n] * p.scale_columns;
}
