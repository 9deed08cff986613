// FP4 experts as the kernels for few rows stream them, a group of 16 rows in one stretch of memory.
//
// ## Layout
// 1. Sixteen rows are a group: 16 following ones, or 8 of the gate and the matching 8 of the up half. The groups of an
//    expert follow one another.
// 2. A group is a unit for each 128 of k: the codes, then their scales, 17 bytes for 32 columns of a row as before.
// 3. The codes are in the order of the tensor cores' fragments: for rows 0 to 7, then for 8 to 15, four words of each
//    lane. Lane 4 * g + q has row g, its s-th word k = 32 * s + 8 * q on.
// 4. A word is eight codes, which become four words of two bf16s, of even and of odd k: a code's sign as the bf16's,
//    its magnitude in bits 8 to 6. Those words, rotated right by so many places that no two share a bit, make up
//    the packed one: by 0, 6 and 12, and of the fourth the lowest bits by 2, the others by 10. So nine instructions
//    take it apart.
// 5. A scale is its byte plus 126: the exponent of a bf16 that takes a magnitude's bits to its value, for bytes up to
//    128. An expert with larger ones, NaN among them, has a mark.
// 6. The scales of row g and of row g + 8 follow one another, four bytes each.
#pragma once
#include <cuda/std/cstdint>

constexpr uint32_t PACKED_K = 128, PACKED_ROWS = 16;
constexpr uint32_t PACKED_CODES = PACKED_ROWS * PACKED_K / 2, PACKED_UNIT = PACKED_CODES + PACKED_ROWS * PACKED_K / 32;
constexpr uint32_t PACKED_BIAS = 126, PACKED_MOST = 128;

// Where a unit has the word of eight codes of a row from this k on, and the byte of their scale.
__device__ __forceinline__ uint32_t packed_word(uint32_t row, uint32_t k) {
    const uint32_t lane = row % 8 * 4 + k / 8 % 4;
    return row / 8 * (PACKED_CODES / 2) + lane * 16 + k / 32 % 4 * 4;
}
__device__ __forceinline__ uint32_t packed_scale(uint32_t row, uint32_t k) {
    return PACKED_CODES + row % 8 * 8 + row / 8 * 4 + k / 32 % 4;
}

constexpr uint32_t PACKED_BITS = 0x81c081c0u, PACKED_LOWEST = 0x00400040u;

__device__ __forceinline__ uint32_t rotated(uint32_t w, uint32_t left) { return __funnelshift_l(w, w, left); }

// Eight codes as stored, as a word of the layout.
__device__ __forceinline__ uint32_t pack_codes(uint32_t stored) {
    uint32_t pairs[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t even = stored >> 8 * i & 15, odd = stored >> 8 * i + 4 & 15;
        pairs[i] = even >> 3 << 15 | (even & 7) << 6 | odd >> 3 << 31 | (odd & 7) << 22;
    }
    const uint32_t lowest = pairs[3] & PACKED_LOWEST;
    return pairs[0] | rotated(pairs[1], 26) | rotated(pairs[2], 20) | rotated(pairs[3] ^ lowest, 22) | lowest >> 2;
}

// The codes of a word as four words of bf16s, of k in its order, but for a factor of 2^126.
__device__ __forceinline__ void widen_packed(uint32_t w, uint32_t (&to)[4]) {
    to[0] = w & PACKED_BITS;
    to[1] = w << 6 & PACKED_BITS;
    to[2] = rotated(w, 12) & PACKED_BITS;
    to[3] = (rotated(w, 10) & (PACKED_BITS ^ PACKED_LOWEST)) | (w << 2 & PACKED_LOWEST);
}

// The j-th code of a word.
__device__ __forceinline__ uint32_t unpack_code(uint32_t word, uint32_t j) {
    uint32_t pairs[4];
    widen_packed(word, pairs);
    const uint32_t pair = j / 2 == 0 ? pairs[0] : j / 2 == 1 ? pairs[1] : j / 2 == 2 ? pairs[2] : pairs[3];
    const uint32_t half = pair >> 16 * (j % 2);
    return (half >> 15 & 1) << 3 | (half >> 6 & 7);
}
