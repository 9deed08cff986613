// How kernels of one vector a thread find their place, and read and write memory.
#pragma once
#include "numbers.cuh"

// Divides by a number that the host has turned into a multiplication: right for n < 2^31.
struct Divisor {
    uint32_t multiplier, shift;
    __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
        return multiplier ? __umulhi(n, multiplier) >> shift : n;
    }
};

__device__ __forceinline__ void begin() {
#if __CUDA_ARCH__ >= 900
    // The next kernel may start now: it waits before it loads, as this one does.
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
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

// The bytes of one access: one element's, or a vector's.
enum class Access { Element, Bytes16, Bytes32 };

template <typename T, Access A> __device__ constexpr int lanes() {
    return A == Access::Element ? 1 : (A == Access::Bytes16 ? 16 : 32) / (int)sizeof(T);
}

// A vector's numbers as f32.
template <typename T, int N>
__device__ __forceinline__ void widen_all(const Vector<T, N>& from, float (&to)[N]) {
    if constexpr (__is_same(T, bf16) && N > 1) {
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

// N elements of each half from a place in a row: interleaved rows begin at `first`, and `second` is
// not read.
template <typename T, int N, bool INTERLEAVED>
__device__ __forceinline__ void load_halves(
    const void* first, const void* second, uint64_t from, float (&gate)[N], float (&up)[N]) {
    using V = Vector<T, N>;
    V a, b;
    if constexpr (INTERLEAVED) {
        a = load<T, N>(first, from);
        b = load<T, N>(first, from + N);
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
#if __CUDA_ARCH__ >= 1000
        if constexpr (sizeof(V) == 32) {
            a = load32<V>((const T*)first + from);
            b = load32<V>((const T*)second + from);
        } else
#endif
        {
            a = load<T, N>(first, from);
            b = load<T, N>(second, from);
        }
        widen_all(a, gate);
        widen_all(b, up);
    }
}
