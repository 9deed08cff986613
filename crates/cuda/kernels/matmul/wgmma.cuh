// Hopper's product of a warpgroup: 64 rows in registers by TOKENS columns in shared memory, 16 of k.
#pragma once
#include <cuda/std/cstdint>

__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// What has been asked for since the last one of these is a group.
__device__ __forceinline__ void end_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until no more than so many groups are under way.
template <int GROUPS> __device__ __forceinline__ void wait_for_groups() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}

#define TEN(T) "%" #T "0, %" #T "1, %" #T "2, %" #T "3, %" #T "4, %" #T "5, %" #T "6, %" #T "7, %" #T "8, %" #T "9, "
#define SUM_8(I) "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]), \
    "+f"(d[I + 6]), "+f"(d[I + 7])
#define SUM_32(I) SUM_8(I), SUM_8(I + 8), SUM_8(I + 16), SUM_8(I + 24)
#define SUM_64 SUM_32(0), SUM_32(32)
#define SUM_128 SUM_64, SUM_32(64), SUM_32(96)
#define PRODUCT(TOKENS, NAMES, A0, A1, A2, A3, B, ...)                                                          \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #TOKENS "k16.f32.bf16.bf16 {" NAMES "}, "                  \
        "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 0;"                                        \
        : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// d += a * b. The sums of a thread are those of rows g and g + 8 of its warp's 16, of columns 2q and 2q + 1 of
// each 8: as four words of mma. Neither they nor a may be touched until the group has ended.
template <int TOKENS>
__device__ __forceinline__ void multiply_warpgroup(float (&d)[TOKENS / 2], const uint32_t* a, uint64_t b) {
    static_assert(TOKENS == 32 || TOKENS == 64 || TOKENS == 128 || TOKENS == 256, "the products that are here");
    if constexpr (TOKENS == 32) {
        PRODUCT(32, TEN() "%10, %11, %12, %13, %14, %15", 16, 17, 18, 19, 20, SUM_8(0), SUM_8(8));
    } else if constexpr (TOKENS == 64) {
        PRODUCT(64, TEN() TEN(1) TEN(2) "%30, %31", 32, 33, 34, 35, 36, SUM_32(0));
    } else if constexpr (TOKENS == 128) {
        PRODUCT(128, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60, %61, %62, %63",
            64, 65, 66, 67, 68, SUM_64);
    } else {
        PRODUCT(256, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11)
            "%120, %121, %122, %123, %124, %125, %126, %127", 128, 129, 130, 131, 132, SUM_128);
    }
}
// The same of codes, 32 of k, both operands in shared memory; `adds` to d, or d begins at zero.
#define CODES_PRODUCT(TOKENS, NAMES, A, B, ADDS, ...)                                                \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #ADDS ", 0; "                                     \
        "wgmma.mma_async.sync.aligned.m64n" #TOKENS "k32.f32.e4m3.e4m3 {" NAMES "}, "                \
        "%" #A ", %" #B ", p, 1, 1;}"                                                                \
        : __VA_ARGS__ : "l"(a), "l"(b), "r"((int)adds))

template <int TOKENS>
__device__ __forceinline__ void multiply_codes_warpgroup(float (&d)[TOKENS / 2], uint64_t a, uint64_t b, bool adds) {
    static_assert(TOKENS == 8 || TOKENS == 16 || TOKENS == 32 || TOKENS == 64 || TOKENS == 128, "the products that are here");
    if constexpr (TOKENS == 8) {
        CODES_PRODUCT(8, "%0, %1, %2, %3", 4, 5, 6, "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]));
    } else if constexpr (TOKENS == 16) {
        CODES_PRODUCT(16, "%0, %1, %2, %3, %4, %5, %6, %7", 8, 9, 10, SUM_8(0));
    } else if constexpr (TOKENS == 32) {
        CODES_PRODUCT(32, TEN() "%10, %11, %12, %13, %14, %15", 16, 17, 18, SUM_8(0), SUM_8(8));
    } else if constexpr (TOKENS == 64) {
        CODES_PRODUCT(64, TEN() TEN(1) TEN(2) "%30, %31", 32, 33, 34, SUM_32(0));
    } else {
        CODES_PRODUCT(128, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60, %61, %62, %63", 64, 65, 66, SUM_64);
    }
}
#undef CODES_PRODUCT
#undef TEN
#undef SUM_8
#undef SUM_32
#undef SUM_64
#undef SUM_128
#undef PRODUCT

// Rows of x in shared memory, 128 bytes of k each, their 16-byte pieces swizzled as the tensor maps of
// src/launch/tensor_map.rs have it. 16 of k further are 2 further.
__device__ __forceinline__ uint64_t describe_rows(uint32_t address) {
    const uint64_t eight_rows = 1024 / 16, swizzle_128 = 1;
    return (uint64_t)(address / 16) | (uint64_t)1 << 16 | eight_rows << 32 | swizzle_128 << 62;
}
