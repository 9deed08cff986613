// Matmuls on tensor cores whose every term is exact: numbers as sums of bf16s or f16s.
//
// ## Method
// 1. An f32 is three bf16s that add up to it, an f16 two; a code of E4M3 is one of either, decoded by its bits.
// 2. Every part of w is multiplied by every part of x: each product is exact, and sums are f32's.
// 3. The order of k is free as long as w and x agree in it: a thread takes its k from one place in memory.
#pragma once
#include "../common/numbers.cuh"
#include <cuda_fp8.h>

using e4m3 = __nv_fp8_e4m3;

// What two types are multiplied in. E4M3 is exact in both.
template <typename X, typename W> struct Multiplied { using Type = bf16; };
template <> struct Multiplied<f16, f16> { using Type = f16; };
template <> struct Multiplied<f16, e4m3> { using Type = f16; };

// Four numbers out of their words, as PARTS times two words of M that add up to them. An infinity
// is its first part, so that it makes a NaN of a number of several parts, some of them 0.
template <typename M, typename T> struct Split {  // M = T
    static constexpr int PARTS = 1;
    static __device__ __forceinline__ void split(const uint32_t* words, uint32_t (&parts)[1][2]) {
        parts[0][0] = words[0], parts[0][1] = words[1];
    }
};

template <int PARTS>
__device__ __forceinline__ void split_floats(float (&x)[4], uint32_t (&parts)[PARTS][2]) {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
        uint32_t bits[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            bits[i] = __float_as_uint(x[i]);
            const bool finite = (bits[i] & 0x7f800000u) != 0x7f800000u;
            if (x[i] != x[i]) bits[i] = 0x7fc00000u;
            // Cut off, not rounded: a sum of parts of one sign does not overflow.
            x[i] = finite ? x[i] - __uint_as_float(bits[i] & 0xffff0000u) : 0.0f;
        }
        parts[part][0] = __byte_perm(bits[0], bits[1], 0x7632);
        parts[part][1] = __byte_perm(bits[2], bits[3], 0x7632);
    }
}

template <> struct Split<bf16, float> {
    static constexpr int PARTS = 3;
    static __device__ __forceinline__ void split(const uint32_t* words, uint32_t (&parts)[3][2]) {
        float x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(words[i]);
        split_floats(x, parts);
    }
};
template <> struct Split<bf16, f16> {
    static constexpr int PARTS = 2;
    static __device__ __forceinline__ void split(const uint32_t* words, uint32_t (&parts)[2][2]) {
        const float2 a = __half22float2(*(const __half2*)&words[0]);
        const float2 b = __half22float2(*(const __half2*)&words[1]);
        float x[4] = {a.x, a.y, b.x, b.y};
        split_floats(x, parts);
    }
};

// Four codes, by their bits: as the sign and the lower bits of a number whose exponent has a larger
// bias they are 2^-120 or 2^-8 of their value, subnormals too, and a multiplication puts that right. It takes
// less time than the hardware's conversions. A NaN becomes 480: the host sees to it that the scale of
// its row is a NaN.
__device__ __forceinline__ uint32_t decode2(bf16, uint32_t high_bytes) {
    const uint32_t small = (high_bytes & 0x80008000u) | ((high_bytes >> 4) & 0x07f007f0u);
    const uint32_t power = 0x7b807b80u;
    const __nv_bfloat162 out = __hmul2(*(const __nv_bfloat162*)&small, *(const __nv_bfloat162*)&power);
    return *(const uint32_t*)&out;
}
__device__ __forceinline__ uint32_t decode2(f16, uint32_t high_bytes) {
    const uint32_t small = (high_bytes & 0x80008000u) | ((high_bytes >> 1) & 0x3f803f80u);
    const uint32_t power = 0x5c005c00u;
    const __half2 out = __hmul2(*(const __half2*)&small, *(const __half2*)&power);
    return *(const uint32_t*)&out;
}
template <typename M> struct Split<M, e4m3> {
    static constexpr int PARTS = 1;
    static __device__ __forceinline__ void split(const uint32_t* words, uint32_t (&parts)[1][2]) {
        parts[0][0] = decode2(M(), __byte_perm(words[0], 0, 0x1404));
        parts[0][1] = decode2(M(), __byte_perm(words[0], 0, 0x3424));
    }
};

// Adds a product of 16 x 16 and 16 x 8: a thread's pairs of k, of rows g, g + 8, g, g + 8 of a and of
// column g of b, go to rows g, g, g + 8, g + 8 and columns 2q, 2q + 1, twice, for g = lane / 4 and
// q = lane % 4. As long as a and b agree in it, the order of k is free: a thread takes its k from one
// place.
template <typename M>
__device__ __forceinline__ void multiply(
    float (&sum)[4], const uint32_t (&low)[2], const uint32_t (&high)[2], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void multiply<bf16>(
    float (&sum)[4], const uint32_t (&low)[2], const uint32_t (&high)[2], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(low[0]), "r"(high[0]), "r"(low[1]), "r"(high[1]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void multiply<f16>(
    float (&sum)[4], const uint32_t (&low)[2], const uint32_t (&high)[2], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(low[0]), "r"(high[0]), "r"(low[1]), "r"(high[1]), "r"(b[0]), "r"(b[1]));
}

// Four k of 16 rows of w, split.
template <typename M, typename W> struct Rows {
    using S = Split<M, W>;
    uint32_t low[S::PARTS][2], high[S::PARTS][2];

    Rows() = default;
    // From the words of rows g and g + 8.
    __device__ __forceinline__ Rows(const uint32_t* g, const uint32_t* g8) {
        S::split(g, low);
        S::split(g8, high);
    }
};

// Adds the products with four k of 8 rows of x, from the words of row g.
template <typename M, typename X, typename W>
__device__ __forceinline__ void add(float (&sum)[4], const Rows<M, W>& w, const uint32_t* words) {
    using S = Split<M, X>;
    uint32_t x[S::PARTS][2];
    S::split(words, x);
#pragma unroll
    for (int i = 0; i < Rows<M, W>::S::PARTS; ++i) {
#pragma unroll
        for (int j = 0; j < S::PARTS; ++j) multiply<M>(sum, w.low[i], w.high[i], x[j]);
    }
}

template <int WORDS> __device__ __forceinline__ void read(const void* from, uint32_t (&to)[WORDS]) {
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WORDS; i += 4) {
            const uint4 v = *(const uint4*)((const uint32_t*)from + i);
            to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
        }
    } else {
        static_assert(WORDS == 2);
        const uint2 v = *(const uint2*)from;
        to[0] = v.x, to[1] = v.y;
    }
}

// From Hopper on: stores eight rows of eight tokens each, a word of two tokens from each lane. A token's rows follow one
// another in memory, where lane t has the place of token t, one matrix after another.
__device__ __forceinline__ void store_matrices(uint32_t to, uint32_t a, uint32_t b) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to), "r"(a), "r"(b) : "memory");
}
