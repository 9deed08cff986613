// The element types, and the careful pieces of f32 arithmetic that the activations are built of.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda/std/cstdint>
#include <cuda/std/type_traits>

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(f16 x) { return __half2float(x); }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }

// To nearest, ties to even, every NaN to the type's canonical one.
template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) {
    return x == x ? x : __uint_as_float(0x7fc00000u);
}
template <> __device__ __forceinline__ f16 narrow<f16>(float x) {
    return x == x ? __float2half_rn(x) : __ushort_as_half(0x7e00);
}
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) {
    return x == x ? __float2bfloat16_rn(x) : __ushort_as_bfloat16(0x7fc0);
}

// From f64, rounded once.
template <typename T> __device__ __forceinline__ T narrow(double x);
template <> __device__ __forceinline__ float narrow<float>(double x) {
    return narrow<float>((float)x);
}
template <> __device__ __forceinline__ f16 narrow<f16>(double x) {
    return x == x ? __double2half(x) : __ushort_as_half(0x7e00);
}
template <> __device__ __forceinline__ bf16 narrow<bf16>(double x) {
    return x == x ? __double2bfloat16(x) : __ushort_as_bfloat16(0x7fc0);
}

// Two at once. The hardware's NaN is 0x7fff, the largest of all codes as signed integers.
__device__ __forceinline__ uint32_t narrow2(f16, float lo, float hi) {
    const __half2 both = __floats2half2_rn(lo, hi);
    return __vmins2(*(const uint32_t*)&both, 0x7e007e00u);
}
__device__ __forceinline__ uint32_t narrow2(bf16, float lo, float hi) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(lo, hi);
    return __vmins2(*(const uint32_t*)&both, 0x7fc07fc0u);
}

// The rounding to the storage type between two steps; what kind of NaN comes of it is no matter.
template <typename T> __device__ __forceinline__ float rounded(float x);
template <> __device__ __forceinline__ float rounded<float>(float x) { return x; }
template <> __device__ __forceinline__ float rounded<f16>(float x) {
    return __half2float(__float2half_rn(x));
}
template <> __device__ __forceinline__ float rounded<bf16>(float x) {
    return __bfloat162float(__float2bfloat16_rn(x));
}

// The same of two at once.
template <typename T> __device__ __forceinline__ void round_pair(float& a, float& b);
template <> __device__ __forceinline__ void round_pair<float>(float&, float&) {}
template <> __device__ __forceinline__ void round_pair<f16>(float& a, float& b) {
    const __half2 both = __floats2half2_rn(a, b);
    a = __low2float(both), b = __high2float(both);
}
template <> __device__ __forceinline__ void round_pair<bf16>(float& a, float& b) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
    const uint32_t word = *(const uint32_t*)&both;
    a = __uint_as_float(word << 16), b = __uint_as_float(word & 0xffff0000u);
}

// fminf and fmaxf take a NaN to the limit; these let it through.
__device__ __forceinline__ float min_nan(float x, float limit) {
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(limit));
    return y;
}
__device__ __forceinline__ float max_nan(float x, float limit) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(limit));
    return y;
}

// A value as an unevaluated sum: hi is the nearest f32.
struct Pair {
    float hi, lo;
};
__device__ __forceinline__ Pair product(float a, float b) {
    const float hi = a * b;
    return {hi, fmaf(a, b, -hi)};
}

// exp(-|z|) for results of 16 bits: within 2^-17, and exact for z = 0. The square of exp(-|z|/2), so
// that subnormals, which the hardware's function takes to 0, are kept.
__device__ __forceinline__ float exp_neg_fast(float z) {
    float root;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(fabsf(z) * -0.72134751f));
    return root * root;
}

// 1/x of a normal number.
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// exp(-|z|) as p * 2^-k, p near 1: no z is too large for it.
struct Exponential {
    float p;
    int k;  // at most 1010

    // 2^-k in two factors, both normal where the product is one that f32 can hold; 0 from 253 on.
    __device__ __forceinline__ float value() const {
        const int half = k / 2;
        const float first = __int_as_float((127 - half) << 23), second = __int_as_float((127 - (k - half)) << 23);
        return k > 252 ? 0.0f : p * first * second;
    }
};

// p within an ulp for |z| up to 350, z given in two parts; 0 where f64 has no exp(-|z|), and a NaN stays one.
__device__ __forceinline__ Exponential exponential(Pair z) {
    const float h = fabsf(z.hi);
    // Nothing that f32 holds is left of a product with a smaller one, and its lower part is not its own.
    const float bounded = min_nan(h, 700.0f);
    const float l = h > 700.0f ? 0.0f : copysignf(1.0f, z.hi) * z.lo;
    const float n = rintf(bounded * 1.44269502f);
    // Up to 350 n has nine bits, and the first part of ln 2 fifteen, so that their product is exact.
    float r = fmaf(n, -0.693145752f, bounded);
    r = fmaf(n, -1.42860677e-6f, r) + l;
    // exp(-r) for |r| <= 0.35.
    float p = fmaf(-r, 1.0f / 5040.0f, 1.0f / 720.0f);
    p = fmaf(p, -r, 1.0f / 120.0f);
    p = fmaf(p, -r, 1.0f / 24.0f);
    p = fmaf(p, -r, 1.0f / 6.0f);
    p = fmaf(p, -r, 0.5f);
    p = fmaf(p * r, r, -r);
    p += 1.0f;
    // Beyond it exp is 0 in f64 too. The int of a NaN is 0.
    return {h > 745.1332f ? 0.0f : p, (int)n};
}

// a/b for b in [1, 2], correct but for a rare last bit, and without a branch.
__device__ __forceinline__ float quotient(float a, float b) {
    const float r = reciprocal(b), q = a * r;
    const float refined = fmaf(fmaf(-q, b, a), r, q);
    // The refinement takes -0 to +0, and an infinity to NaN.
    return fabsf(a) < __int_as_float(0x7f800000) ? copysignf(refined, a) : q;
}

// x * 2^-k, for k up to 1010.
__device__ __forceinline__ double lowered(double x, int k) { return x * __hiloint2double((1023 - k) << 20, 0); }
