// E4M3 codes and the scales of their groups, bit for bit as core's `Quantization` has them.
#pragma once
#include "numbers.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 890
// To nearest, ties to even; beyond 448 is 448, every NaN 0x7f.
__device__ __forceinline__ uint32_t encode(float x) {
    const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7f;
    uint32_t code;
    if (magnitude >= 0x43e00000u) {
        code = 0x7e;
    } else if (magnitude < 0x3c800000u) {
        // Subnormal, a multiple of 2^-9. Adding 2^14 leaves exactly those bits, rounded.
        code = __float_as_uint(__uint_as_float(magnitude) + 16384.0f) & 0xf;
    } else {
        code = ((magnitude + 0x7ffff + ((magnitude >> 20) & 1)) >> 20) - ((127 - 7) << 3);
    }
    return (bits >> 31 << 7) | code;
}
#endif

// Four codes, the first lowest.
__device__ __forceinline__ uint32_t encode4(const float* x) {
#if __CUDA_ARCH__ >= 890
    uint16_t lo, hi;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(lo) : "f"(x[1]), "f"(x[0]));
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(hi) : "f"(x[3]), "f"(x[2]));
    return lo | (uint32_t)hi << 16;
#else
    return encode(x[0]) | encode(x[1]) << 8 | encode(x[2]) << 16 | encode(x[3]) << 24;
#endif
}

// The byte of the least power of two not below amax/448, given amax's bits; 255, NaN, where amax
// is not finite. 448 is 1.75 * 2^8: the exponent less 8, one more where the mantissa is beyond
// 1.75. The quotient rounded to f32 first gives the same, as it reaches no power of two from above.
__device__ __forceinline__ uint32_t power_of_two_scale(uint32_t amax) {
    return amax < 0x7f800000u ? ((amax + 0x1fffffu) >> 23) - 8 : 255;
}

// 1/2^(byte - 127), for bytes up to 253; NaN for 255.
__device__ __forceinline__ float inverse_power(uint32_t byte) {
    return __uint_as_float(byte == 255 ? 0x7fc00000u : (254 - byte) << 23);
}

// The inverse of the power of two that `power_of_two_scale` has the byte of, in fewer steps from its argument: 254 less the
// byte, as an exponent.
__device__ __forceinline__ float inverse_scale(uint32_t amax) {
    const uint32_t inverse = (262u << 23) - ((amax + 0x1fffffu) & 0xff800000u);
    return __uint_as_float(amax < 0x7f800000u ? inverse : 0x7fc00000u);
}

__device__ __forceinline__ float power(uint32_t byte) {
    const uint32_t subnormal = 0x00400000u;
    return __uint_as_float(byte == 255 ? 0x7fc00000u : byte == 0 ? subnormal : byte << 23);
}

// x/scale as IEEE division rounds it, for many x, wherever it matters to a code: quotients too
// small for one may lose bits. The scale is positive and not subnormal, or it is not finite.
struct Division {
    float power, significand, inverse;  // 1/scale is power * (1/significand)

    __device__ __forceinline__ explicit Division(float scale) {
        const uint32_t bits = __float_as_uint(scale), exponent = bits & 0x7f800000u;
        power = __uint_as_float(0x7f000000u - exponent);
        // x/inf is a zero, or NaN where x is infinite, and so is x * 0.
        if (exponent == 0x7f800000u) power = bits == exponent ? 0.0f : __uint_as_float(0x7fc00000u);
        significand = __uint_as_float((bits & 0x7fffffu) | 0x3f800000u);
        inverse = __frcp_rn(significand);
    }

    __device__ __forceinline__ float operator()(float x) const {
        // In [2^-126, 2^10), where neither product nor remainder leaves the normal numbers.
        const float a = x * power, q = a * inverse;
        const float refined = fmaf(fmaf(-q, significand, a), inverse, q);
        // The refinement takes -0 to +0.
        return copysignf(refined, x);
    }
};
