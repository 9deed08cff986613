// How kernels of one vector a thread find their place, and read and write memory.
#pragma once
#include "numbers.cuh"

// Structs that the host fills have a twin in src/launch/params.rs: a test there reads these lines.
#define TWIN_SIZE(TYPE, SIZE) static_assert(sizeof(TYPE) == SIZE, #TYPE)
#define TWIN_FIELD(TYPE, FIELD, OFFSET) static_assert(__INTADDR__(&((TYPE*)0)->FIELD) == OFFSET, #TYPE "." #FIELD)

// Divides by a number that the host has turned into a multiplication: right for n < 2^31.
struct Divisor {
    uint32_t multiplier, shift;
    __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
        return multiplier ? __umulhi(n, multiplier) >> shift : n;
    }
};
TWIN_SIZE(Divisor, 8);
TWIN_FIELD(Divisor, multiplier, 0);
TWIN_FIELD(Divisor, shift, 4);

// The next kernel may start now: it waits before it reads what this one writes.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// For the end of the kernel before this one.
__device__ __forceinline__ void wait_for_last() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void begin() {
    let_next_start();
    wait_for_last();
}

// An address that is made here, before a wait for memory: the compiler would put that behind it.
template <typename T> __device__ __forceinline__ T* early(T* address) {
    asm volatile("" : "+l"(address));
    __builtin_assume(__isGlobal(address));
    return address;
}

template <typename T, int N> struct alignas(sizeof(T) * N) Vector {
    T x[N];
};

template <typename T, int N>
__device__ __forceinline__ Vector<T, N> load(const void* base, uint64_t element) {
    return *(const Vector<T, N>*)((const T*)base + element);
}
#if __CUDA_ARCH__ >= 1000
// 32 bytes are one access from Blackwell on; the compiler does not merge two of 16 by itself.
template <typename V> __device__ __forceinline__ V load32(const void* from) {
    V v;
    uint32_t* w = (uint32_t*)&v;
    asm volatile("ld.global.v8.b32 {%0,%1,%2,%3,%4,%5,%6,%7}, [%8];"
        : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3]),
          "=r"(w[4]), "=r"(w[5]), "=r"(w[6]), "=r"(w[7]) : "l"(from) : "memory");
    return v;
}
template <typename V> __device__ __forceinline__ void store32(void* to, const V& v) {
    const uint32_t* w = (const uint32_t*)&v;
    asm volatile("st.global.v8.b32 [%0], {%1,%2,%3,%4,%5,%6,%7,%8};" :: "l"(to),
        "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]),
        "r"(w[4]), "r"(w[5]), "r"(w[6]), "r"(w[7]) : "memory");
}
#endif

// Vectors of 16 or 32 bytes, or of 16 bytes of rows that lie anywhere.
enum class Access { Any, Bytes16, Bytes32 };

template <typename T, Access A> __device__ constexpr int lanes() {
    return (A == Access::Bytes32 ? 32 : 16) / (int)sizeof(T);
}

// How far an address lies behind a multiple of 16.
__device__ __forceinline__ uint32_t behind16(const void* address) {
    return (uint32_t)(uintptr_t)address & 15;
}

// Reads in the order of the code, and nothing waits for them before they are used.
__device__ __forceinline__ void load16(const void* from, uint32_t* to) {
    asm volatile("ld.global.v4.b32 {%0,%1,%2,%3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(from) : "memory");
}
__device__ __forceinline__ uint32_t load4(const void* from) {
    uint32_t v;
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}
__device__ __forceinline__ uint32_t load2(const void* from) {
    uint16_t v;
    asm volatile("ld.global.b16 %0, [%1];" : "=h"(v) : "l"(from) : "memory");
    return v;
}

// 16 bytes from anywhere in a row, on their way: the two blocks of 16 bytes that they lie in, or words, of which no more
// is read than is needed. No memory begins within a block or a word.
template <typename T> struct Anywhere {
    uint32_t w[8];  // what is not read of them is anything
    uint32_t behind;

    __device__ __forceinline__ Anywhere(const T* from, bool blocks) : behind(behind16(from)) {
#pragma unroll
        for (int i = 0; i < 8; ++i) asm("" : "=r"(w[i]));
        if (blocks) {
            const char* const at = (const char*)from - behind;
            load16(at, w);
            load16(at + 16, w + 4);
        } else {
            behind &= 2;
            const char* const at = (const char*)from - behind;
#pragma unroll
            for (int i = 0; i < 4; ++i) w[i] = load4(at + 4 * i);
            if (sizeof(T) == 2 && behind != 0) w[4] = load2(at + 16);
        }
    }
    template <typename V> __device__ __forceinline__ V vector() const {
        uint32_t by2[6], by1[5];
#pragma unroll
        for (int i = 0; i < 6; ++i) by2[i] = behind & 8 ? w[i + 2] : w[i];
#pragma unroll
        for (int i = 0; i < 5; ++i) by1[i] = behind & 4 ? by2[i + 1] : by2[i];
        V out;
        uint32_t* to = (uint32_t*)&out;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            to[i] = sizeof(T) == 4 ? by1[i] : __funnelshift_r(by1[i], by1[i + 1], 8 * (behind & 2));
        }
        return out;
    }
};

// A vector's numbers as f32.
template <typename T, int N>
__device__ __forceinline__ void widen_all(const Vector<T, N>& from, float (&to)[N]) {
    if constexpr (cuda::std::is_same_v<T, bf16> && N > 1) {
        // The halves of a word by themselves, an instruction each.
        const uint32_t* words = (const uint32_t*)&from;
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            to[j] = __uint_as_float(words[j / 2] << 16);
            to[j + 1] = __uint_as_float(words[j / 2] & 0xffff0000u);
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) to[j] = widen(from.x[j]);
    }
}

// The halves of vectors of each, or of two vectors of an interleaved row.
template <int N, typename V, bool INTERLEAVED>
__device__ __forceinline__ void widen_halves(const V& a, const V& b, float (&gate)[N], float (&up)[N]) {
    if constexpr (INTERLEAVED) {
        float x[N], y[N];
        widen_all(a, x);
        widen_all(b, y);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const int g = 2 * j, u = 2 * j + 1;
            gate[j] = g < N ? x[g] : y[g - N];
            up[j] = u < N ? x[u] : y[u - N];
        }
    } else {
        widen_all(a, gate);
        widen_all(b, up);
    }
}

// N elements of each half from a place in a row: interleaved rows begin at `first`, and `second` is
// not read.
template <typename T, int N, bool INTERLEAVED>
__device__ __forceinline__ void load_halves(
    const void* first, const void* second, uint64_t from, float (&gate)[N], float (&up)[N]) {
    using V = Vector<T, N>;
    const void* next = INTERLEAVED ? (const T*)first + N : second;
    V a, b;
#if __CUDA_ARCH__ >= 1000
    if constexpr (sizeof(V) == 32) {
        a = load32<V>((const T*)first + from);
        b = load32<V>((const T*)next + from);
    } else
#endif
    {
        a = load<T, N>(first, from);
        b = load<T, N>(next, from);
    }
    widen_halves<N, V, INTERLEAVED>(a, b, gate, up);
}
