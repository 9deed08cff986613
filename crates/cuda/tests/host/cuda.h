// What kernels/common/numbers.cuh and kernels/activation/functions.cuh use of CUDA, for a C++ compiler.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <type_traits>

#define __device__
#define __forceinline__ inline

namespace cuda::std {
using ::std::is_same_v;
}

inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __int_as_float(int32_t x) { return std::bit_cast<float>(x); }
inline double __hiloint2double(int32_t hi, int32_t lo) {
    return std::bit_cast<double>((uint64_t)(uint32_t)hi << 32 | (uint32_t)lo);
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint64_t)a * b >> 32; }
inline uint32_t __funnelshift_r(uint32_t lo, uint32_t hi, uint32_t by) {
    return ((uint64_t)hi << 32 | lo) >> (by & 31);
}
inline uint32_t __funnelshift_l(uint32_t lo, uint32_t hi, uint32_t by) {
    return ((uint64_t)hi << 32 | lo) << (by & 31) >> 32;
}
inline uint32_t __vmins2(uint32_t a, uint32_t b) {
    const auto half = [](uint32_t x, uint32_t y) { return (int16_t)x < (int16_t)y ? x & 0xffff : y & 0xffff; };
    return half(a, b) | half(a >> 16, b >> 16) << 16;
}

// The hardware's, within an error that is theirs or larger. Subnormals are taken to 0.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float approximate(double x) { return flushed((float)(x * (1.0 + 0x1p-22))); }
inline float ex2_approx_ftz(float x) { return x == 0.0f ? 1.0f : approximate(std::exp2((double)flushed(x))); }
inline float rcp_approx_ftz(float x) { return approximate(1.0 / (double)flushed(x)); }
inline float min_NaN(float a, float b) { return a != a || b != b ? NAN : a < b ? a : b; }
inline float max_NaN(float a, float b) { return a != a || b != b ? NAN : a > b ? a : b; }

struct __nv_bfloat16 {
    uint16_t x;
};
struct __half {
    _Float16 x;
};
struct __nv_bfloat162 {
    __nv_bfloat16 lo, hi;
};
struct __half2 {
    __half lo, hi;
};
struct uint4 {
    uint32_t x, y, z, w;
};
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float((uint32_t)x.x << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    if (x != x) return {0x7fff};
    const uint32_t bits = __float_as_uint(x);
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat16 __double2bfloat16(double x) { return __float2bfloat16_rn((float)x); }
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t x) { return {x}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float lo, float hi) {
    return {__float2bfloat16_rn(lo), __float2bfloat16_rn(hi)};
}
inline float __half2float(__half x) { return (float)x.x; }
inline __half __float2half_rn(float x) { return {(_Float16)x}; }
inline __half __double2half(double x) { return {(_Float16)x}; }
inline __half __ushort_as_half(uint16_t x) { return {std::bit_cast<_Float16>(x)}; }
inline __half2 __floats2half2_rn(float lo, float hi) { return {__float2half_rn(lo), __float2half_rn(hi)}; }
inline float __low2float(__half2 x) { return __half2float(x.lo); }
inline float __high2float(__half2 x) { return __half2float(x.hi); }
