// What kernels that stream a packed FP8 weight share: their parameter, and what becomes of a sum.
#pragma once
#include "packed.cuh"
#include "../activation/functions.cuh"

// The twin of `StepParams` in src/launch/params.rs.
struct StepParams {
    const uint8_t* w;
    const bf16* x;                // rows begin at multiples of 16 bytes
    void* y;
    uint64_t x_stride, y_stride;  // elements
    Packing packing;
    uint32_t t, k;
    uint32_t y_type;
    uint32_t clamped;             // the activation,
    uint16_t eager;               // and how it rounds
    uint16_t next_late;           // whether a decode step lets the next kernel start only after its wait
    Scalars scalars;
};
TWIN_SIZE(StepParams, 96);
TWIN_FIELD(StepParams, w, 0);
TWIN_FIELD(StepParams, x, 8);
TWIN_FIELD(StepParams, y, 16);
TWIN_FIELD(StepParams, x_stride, 24);
TWIN_FIELD(StepParams, y_stride, 32);
TWIN_FIELD(StepParams, packing, 40);
TWIN_FIELD(StepParams, t, 56);
TWIN_FIELD(StepParams, k, 60);
TWIN_FIELD(StepParams, y_type, 64);
TWIN_FIELD(StepParams, clamped, 68);
TWIN_FIELD(StepParams, eager, 72);
TWIN_FIELD(StepParams, next_late, 74);
TWIN_FIELD(StepParams, scalars, 76);

template <typename T>
__device__ __forceinline__ T activated(const StepParams& p, float gate, float up) {
    gate = rounded<T>(gate), up = rounded<T>(up);
    const Scalars& s = p.scalars;
    float y;
    if (p.eager && sizeof(T) == 2) {
        y = p.clamped ? gated<Silu, Clamp::Before, T, true>(gate, up, s)
                      : gated<Silu, Clamp::None, T, true>(gate, up, s);
    } else {
        y = p.clamped ? gated<Silu, Clamp::Before, T, false>(gate, up, s)
                      : gated<Silu, Clamp::None, T, false>(gate, up, s);
    }
    return narrow<T>(y);
}

// The sums of row g of a group, `low`, and of row g + 8, of one token.
template <bool GATED, typename T>
__device__ __forceinline__ void store_rows(
    const StepParams& p, uint32_t row, uint32_t token, float low, float high) {
    if (token >= p.t) return;
    T* const y = (T*)p.y + token * p.y_stride + row;
    if constexpr (GATED) {
        *y = activated<T>(p, low, high);
    } else {
        y[0] = narrow<T>(low);
        y[p.packing.half_rows] = narrow<T>(high);
    }
}
template <bool GATED, typename T>
__device__ __forceinline__ void store_tokens(const StepParams& p, uint32_t row, uint32_t token, float4 v) {
    store_rows<GATED, T>(p, row, token, v.x, v.z);
    store_rows<GATED, T>(p, row, token + 1, v.y, v.w);
}
