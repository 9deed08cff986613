// Hopper's products of a warpgroup with as many columns as a tile has, up to 128: a multiple of 8 that is known when it
// runs.
//
// ## Method
// The products of all numbers of columns have their first sums in the same registers. So the branch is around the products
// alone: with one around a loop each branch would have registers of its own.
#pragma once
#include "wgmma.cuh"

#define TEN(T) "%" #T "0, %" #T "1, %" #T "2, %" #T "3, %" #T "4, %" #T "5, %" #T "6, %" #T "7, %" #T "8, %" #T "9, "
#define LAST_2(T) "%" #T "0, %" #T "1"
#define LAST_4(T) LAST_2(T) ", %" #T "2, %" #T "3"
#define LAST_6(T) LAST_4(T) ", %" #T "4, %" #T "5"
#define LAST_8(T) LAST_6(T) ", %" #T "6, %" #T "7"
#define LAST_10(T) LAST_8(T) ", %" #T "8, %" #T "9"
#define SUM_4(I) "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3])
#define SUM_8(I) SUM_4(I), SUM_4(I + 4)
#define SUM_16(I) SUM_8(I), SUM_8(I + 8)
#define SUM_32(I) SUM_16(I), SUM_16(I + 16)
#define PRODUCT(COLUMNS, NAMES, A0, A1, A2, A3, B, ...)                                                         \
    if constexpr (COLUMNS == EIGHTS * 8)                                                                        \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32.bf16.bf16 {" NAMES "}, "             \
            "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 0;"                                    \
            : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// As `multiply_warpgroup`, of the first sums of a thread.
template <int EIGHTS, int SUMS>
__device__ __forceinline__ void multiply_eights(float (&d)[SUMS], const uint32_t* a, uint64_t b) {
    static_assert(EIGHTS >= 1 && EIGHTS <= 16 && 4 * EIGHTS <= SUMS, "the products that are here");
    PRODUCT(8, LAST_4(), 4, 5, 6, 7, 8, SUM_4(0));
    PRODUCT(16, LAST_8(), 8, 9, 10, 11, 12, SUM_8(0));
    PRODUCT(24, TEN() LAST_2(1), 12, 13, 14, 15, 16, SUM_8(0), SUM_4(8));
    PRODUCT(32, TEN() LAST_6(1), 16, 17, 18, 19, 20, SUM_16(0));
    PRODUCT(40, TEN() LAST_10(1), 20, 21, 22, 23, 24, SUM_16(0), SUM_4(16));
    PRODUCT(48, TEN() TEN(1) LAST_4(2), 24, 25, 26, 27, 28, SUM_16(0), SUM_8(16));
    PRODUCT(56, TEN() TEN(1) LAST_8(2), 28, 29, 30, 31, 32, SUM_16(0), SUM_8(16), SUM_4(24));
    PRODUCT(64, TEN() TEN(1) TEN(2) LAST_2(3), 32, 33, 34, 35, 36, SUM_32(0));
    PRODUCT(72, TEN() TEN(1) TEN(2) LAST_6(3), 36, 37, 38, 39, 40, SUM_32(0), SUM_4(32));
    PRODUCT(80, TEN() TEN(1) TEN(2) LAST_10(3), 40, 41, 42, 43, 44, SUM_32(0), SUM_8(32));
    PRODUCT(88, TEN() TEN(1) TEN(2) TEN(3) LAST_4(4), 44, 45, 46, 47, 48, SUM_32(0), SUM_8(32), SUM_4(40));
    PRODUCT(96, TEN() TEN(1) TEN(2) TEN(3) LAST_8(4), 48, 49, 50, 51, 52, SUM_32(0), SUM_16(32));
    PRODUCT(104, TEN() TEN(1) TEN(2) TEN(3) TEN(4) LAST_2(5), 52, 53, 54, 55, 56, SUM_32(0), SUM_16(32), SUM_4(48));
    PRODUCT(112, TEN() TEN(1) TEN(2) TEN(3) TEN(4) LAST_6(5), 56, 57, 58, 59, 60, SUM_32(0), SUM_16(32), SUM_8(48));
    PRODUCT(120, TEN() TEN(1) TEN(2) TEN(3) TEN(4) LAST_10(5), 60, 61, 62, 63, 64, SUM_32(0), SUM_16(32), SUM_8(48),
        SUM_4(56));
    PRODUCT(128, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) LAST_4(6), 64, 65, 66, 67, 68, SUM_32(0), SUM_32(32));
}
#undef TEN
#undef LAST_2
#undef LAST_4
#undef LAST_6
#undef LAST_8
#undef LAST_10
#undef SUM_4
#undef SUM_8
#undef SUM_16
#undef SUM_32
#undef PRODUCT

// Asks for a group: 64 of k, whose fragments `a` are, of SLABS times 64 rows by as many columns.
template <int EIGHTS, int SLABS, int SUMS>
__device__ __forceinline__ void multiply_group(float (&sum)[SLABS][SUMS], const uint32_t (&a)[SLABS][16], uint64_t x) {
    if constexpr (4 * EIGHTS <= SUMS) {
#pragma unroll
        for (int m = 0; m < SLABS; ++m)
#pragma unroll
            for (int j = 0; j < 4; ++j) multiply_eights<EIGHTS>(sum[m], a[m] + 4 * j, x + 2 * j);
        end_group();
    }
}
// The same by FIRST + `more` eights, of which there are fewer than 2 * BIT: four branches by bits, where a switch took
// longer than some products.
template <int FIRST, int BIT, int SLABS, int SUMS>
__device__ __forceinline__ void multiply_group(
    float (&sum)[SLABS][SUMS], const uint32_t (&a)[SLABS][16], uint64_t x, uint32_t more) {
    if constexpr (BIT == 0) multiply_group<FIRST>(sum, a, x);
    else if (more & BIT) multiply_group<FIRST + BIT, BIT / 2>(sum, a, x, more);
    else multiply_group<FIRST, BIT / 2>(sum, a, x, more);
}
template <int SLABS, int SUMS>
__device__ __forceinline__ void multiply_columns(
    float (&sum)[SLABS][SUMS], const uint32_t (&a)[SLABS][16], uint64_t x, uint32_t columns) {
    begin_products();
    multiply_group<1, 8>(sum, a, x, columns / 8 - 1);
}
