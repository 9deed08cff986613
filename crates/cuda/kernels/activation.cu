// output[t, j] = f(gate[t, j]) * up[t, j]: one vector of outputs a thread on a flat grid, which was
// measured to be the fastest copy on an H200.
#include "functions.cuh"

// Divides by a number that the host has turned into a multiplication: right for n < 2^31.
struct Divisor {
    uint32_t multiplier, shift;
    __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
        return multiplier ? __umulhi(n, multiplier) >> shift : n;
    }
};

// The twin of `Params` in src/params.rs.
struct Params {
    const void* gate;    // interleaved rows: the row
    const void* up;      // interleaved rows: not read
    void* output;
    const int32_t* counts;  // rows in use of each batch, or null: all rows are
    uint64_t input_stride, output_stride;  // elements from row to row
    uint32_t vectors;       // in all
    uint32_t row_vectors;   // in a row
    Divisor by_row;         // by row_vectors
    uint32_t batch_rows;    // rows of a batch
    uint32_t first_row;     // of this launch, for counts
    Divisor by_batch;       // by batch_rows
    Scalars scalars;
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

template <typename F, Clamp C, typename T, bool EAGER, bool INTERLEAVED, Access A>
__device__ __forceinline__ void act_and_mul(const Params& p) {
    constexpr int N = lanes<T, A>();
    using V = Vector<T, N>;
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.vectors) {
        begin();
        return;
    }
    const uint32_t row = p.by_row.quotient(i);
    const uint32_t column = (i - row * p.row_vectors) * N;
    const uint64_t from = row * p.input_stride + (INTERLEAVED ? 2ull * column : column);
    const uint64_t to = row * p.output_stride + column;
    begin();
    if (p.counts != nullptr) {
        const uint32_t at = row + p.first_row, batch = p.by_batch.quotient(at);
        if ((int64_t)(at - batch * p.batch_rows) >= (int64_t)p.counts[batch]) return;
    }
    T gate[N], up[N];
    if constexpr (INTERLEAVED) {
        const V first = load<T, N>(p.gate, from), second = load<T, N>(p.gate, from + N);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const int g = 2 * j, u = 2 * j + 1;
            gate[j] = g < N ? first.x[g] : second.x[g - N];
            up[j] = u < N ? first.x[u] : second.x[u - N];
        }
    } else {
        V g, u;
#if __CUDA_ARCH__ >= 1000
        if constexpr (A == Access::Bytes32) {
            g = load32<V>((const T*)p.gate + from);
            u = load32<V>((const T*)p.up + from);
        } else
#endif
        {
            g = load<T, N>(p.gate, from);
            u = load<T, N>(p.up, from);
        }
#pragma unroll
        for (int j = 0; j < N; ++j) gate[j] = g.x[j], up[j] = u.x[j];
    }
    V out;
    float y[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
        y[j] = gated<F, C, T, EAGER>(widen(gate[j]), widen(up[j]), p.scalars);
    }
    if constexpr (N > 1 && sizeof(T) == 2) {
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            *(uint32_t*)&out.x[j] = narrow2(T(), y[j], y[j + 1]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) out.x[j] = narrow<T>(y[j]);
    }
#if __CUDA_ARCH__ >= 1000
    if constexpr (A == Access::Bytes32) {
        store32((T*)p.output + to, out);
        return;
    }
#endif
    *(V*)((T*)p.output + to) = out;
}

// Kernels are named act_<function>_<clamp>_<layout>_<type>_<rounding>_<access>.
#define KERNEL(NAME, F, C, T, EAGER, INTERLEAVED, ACCESS)                                       \
    extern "C" __global__ void __launch_bounds__(1024) NAME(const __grid_constant__ Params p) { \
        act_and_mul<F, Clamp::C, T, EAGER, INTERLEAVED, Access::ACCESS>(p);                     \
    }
#define WIDTHS(NAME, ...)                       \
    KERNEL(NAME##_element, __VA_ARGS__, Element) \
    KERNEL(NAME##_16bytes, __VA_ARGS__, Bytes16)
// f32 rounds to itself: its two modes are one.
#define TYPES(NAME, F, C, INTERLEAVED)                             \
    WIDTHS(NAME##_f32_official, F, C, float, false, INTERLEAVED)    \
    WIDTHS(NAME##_f16_official, F, C, f16, false, INTERLEAVED)      \
    WIDTHS(NAME##_f16_eager, F, C, f16, true, INTERLEAVED)          \
    WIDTHS(NAME##_bf16_official, F, C, bf16, false, INTERLEAVED)    \
    WIDTHS(NAME##_bf16_eager, F, C, bf16, true, INTERLEAVED)

TYPES(act_silu_none_concatenated, Silu, None, false)
TYPES(act_silu_before_concatenated, Silu, Before, false)
TYPES(act_silu_after_concatenated, Silu, After, false)
TYPES(act_silu_alpha_before_concatenated, SiluAlpha, Before, false)
TYPES(act_silu_alpha_before_interleaved, SiluAlpha, Before, true)
TYPES(act_gelu_none_concatenated, Gelu, None, false)
TYPES(act_gelu_tanh_none_concatenated, GeluTanh, None, false)
TYPES(act_fatrelu_none_concatenated, FatRelu, None, false)
TYPES(act_situ_none_concatenated, Situ, None, false)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 1000
#define WIDE(NAME, F, C)                                             \
    KERNEL(NAME##_f32_official_32bytes, F, C, float, false, false, Bytes32)  \
    KERNEL(NAME##_f16_official_32bytes, F, C, f16, false, false, Bytes32)    \
    KERNEL(NAME##_bf16_official_32bytes, F, C, bf16, false, false, Bytes32)
WIDE(act_silu_none_concatenated, Silu, None)
WIDE(act_silu_before_concatenated, Silu, Before)
#endif

// The limit that the activation is measured against: as many bytes read and written, in whole
// 16-byte vectors: reads two, writes one.
extern "C" __global__ void __launch_bounds__(1024) copy_16bytes(const __grid_constant__ Params p) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    begin();
    if (i >= p.vectors) return;
    const uint4 a = ((const uint4*)p.gate)[i], b = ((const uint4*)p.up)[i];
    ((uint4*)p.output)[i] = make_uint4(a.x ^ b.x, a.y ^ b.y, a.z ^ b.z, a.w ^ b.w);
}
