// Hopper's product of a warpgroup, both operands in shared memory: 64 rows by TOKENS columns, 16 of k.
#pragma once
#include "wgmma.cuh"
#include "../common/numbers.cuh"

#define TEN(T) "%" #T "0, %" #T "1, %" #T "2, %" #T "3, %" #T "4, %" #T "5, %" #T "6, %" #T "7, %" #T "8, %" #T "9, "
#define SUM_4(I) "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3])
#define SUM_8(I) SUM_4(I), SUM_4(I + 4)
#define SUM_32(I) SUM_8(I), SUM_8(I + 8), SUM_8(I + 16), SUM_8(I + 24)
#define SUM_64 SUM_32(0), SUM_32(32)
#define PRODUCT_OF(TYPE, TOKENS, NAMES, A, B, ...)                                                          \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #TOKENS "k16.f32." TYPE "." TYPE " {" NAMES "}, "      \
        "%" #A ", %" #B ", 1, 1, 1, 0, 0;" : __VA_ARGS__ : "l"(a), "l"(b))
#define PRODUCT(...)                                                             \
    if constexpr (cuda::std::is_same_v<T, bf16>) PRODUCT_OF("bf16", __VA_ARGS__); \
    else PRODUCT_OF("f16", __VA_ARGS__)

// d += a * b, of rows that `describe_rows` describes. The sums of a thread are as those of `multiply_warpgroup`.
template <typename T, int TOKENS>
__device__ __forceinline__ void multiply_shared(float (&d)[TOKENS / 2], uint64_t a, uint64_t b) {
    static_assert(TOKENS == 8 || TOKENS == 16 || TOKENS == 32 || TOKENS == 64 || TOKENS == 128,
        "the products that are here");
    if constexpr (TOKENS == 8) {
        PRODUCT(8, "%0, %1, %2, %3", 4, 5, SUM_4(0));
    } else if constexpr (TOKENS == 16) {
        PRODUCT(16, "%0, %1, %2, %3, %4, %5, %6, %7", 8, 9, SUM_8(0));
    } else if constexpr (TOKENS == 32) {
        PRODUCT(32, TEN() "%10, %11, %12, %13, %14, %15", 16, 17, SUM_8(0), SUM_8(8));
    } else if constexpr (TOKENS == 64) {
        PRODUCT(64, TEN() TEN(1) TEN(2) "%30, %31", 32, 33, SUM_32(0));
    } else {
        PRODUCT(128, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60, %61, %62, %63", 64, 65, SUM_64);
    }
}
#undef TEN
#undef SUM_4
#undef SUM_8
#undef SUM_32
#undef SUM_64
#undef PRODUCT_OF
#undef PRODUCT
