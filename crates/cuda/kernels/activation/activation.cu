// output[t, j] = f(gate[t, j]) * up[t, j].
//
// ## Method
// 1. One vector of outputs a thread on a flat grid, which was measured to be the fastest copy on an H200.
// 2. Rows of whole vectors: two loads, the function of each pair in f32, one store.
// 3. Rows that lie anywhere: a thread owns the outputs between two multiples of 16 bytes, and reads its
//    inputs by the blocks of 16 bytes that they lie in. The ends of a row take whole vectors too.
// 4. Function, clamp, rounding and layout are template parameters; instances.cuh lists what is compiled.
#include "functions.cuh"
#include "instances.cuh"
#include "../common/memory.cuh"

// The twin of `ActParams` in src/launch/params.rs.
struct ActParams {
    const void* gate;    // interleaved rows: the row
    const void* up;      // interleaved rows: not read
    void* output;
    const int32_t* counts;  // rows in use of each batch, or null: all rows are
    uint64_t gate_stride, up_stride, output_stride;  // elements from row to row
    uint64_t d;             // outputs of a row
    uint32_t vectors;       // in all
    uint32_t row_vectors;   // in a row
    Divisor by_row;         // by row_vectors
    uint32_t batch_rows;    // rows of a batch
    uint32_t first_row;     // of this launch, for counts
    Divisor by_batch;       // by batch_rows
    Scalars scalars;
};
TWIN_SIZE(ActParams, 112);
TWIN_FIELD(ActParams, gate, 0);
TWIN_FIELD(ActParams, up, 8);
TWIN_FIELD(ActParams, output, 16);
TWIN_FIELD(ActParams, counts, 24);
TWIN_FIELD(ActParams, gate_stride, 32);
TWIN_FIELD(ActParams, up_stride, 40);
TWIN_FIELD(ActParams, output_stride, 48);
TWIN_FIELD(ActParams, d, 56);
TWIN_FIELD(ActParams, vectors, 64);
TWIN_FIELD(ActParams, row_vectors, 68);
TWIN_FIELD(ActParams, by_row, 72);
TWIN_FIELD(ActParams, batch_rows, 80);
TWIN_FIELD(ActParams, first_row, 84);
TWIN_FIELD(ActParams, by_batch, 88);
TWIN_FIELD(ActParams, scalars, 96);

// Whether a row is in use, where there are counts.
__device__ __forceinline__ bool in_use(const ActParams& p, uint32_t row) {
    const uint32_t at = row + p.first_row, batch = p.by_batch.quotient(at);
    return (int64_t)(at - batch * p.batch_rows) < (int64_t)p.counts[batch];
}

// A vector's outputs, and whether `rewrite` has to write any of them anew.
template <typename F, Clamp C, typename T, bool EAGER, int N>
__device__ __forceinline__ Vector<T, N> activate(
    const float (&gate)[N], const float (&up)[N], const Scalars& scalars, bool& lost) {
    Vector<T, N> out;
    float y[N];
#pragma unroll
    for (int j = 0; j < N; ++j) y[j] = gated_or_lost<F, C, T, EAGER>(gate[j], up[j], scalars, lost);
    if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            *(uint32_t*)&out.x[j] = narrow2(T(), y[j], y[j + 1]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) out.x[j] = narrow<T>(y[j]);
    }
    return out;
}

// A vector of 16 bytes as one: the compiler writes its elements one by one where another branch does so.
template <typename V> __device__ __forceinline__ void store16(void* to, const V& v) {
    const uint32_t* w = (const uint32_t*)&v;
    asm volatile("st.global.v4.b32 [%0], {%1,%2,%3,%4};"
        :: "l"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
}

// Those of so many outputs that f32 lost once more, out of memory: no register is kept for what is rare.
template <typename F, Clamp C, typename T, int APART>
__device__ __forceinline__ void rewrite(
    const T* gate, const T* up, T* to, int count, const Scalars& scalars) {
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
        const float g = widen(gate[APART * j]), u = widen(up[APART * j]);
        bool lost = false;
        gated_or_lost<F, C, T, false>(g, u, scalars, lost);
        if (lost) to[j] = narrow<T>(gated_wide<F, C, T>(g, u, scalars));
    }
}

// Rows of whole vectors, both halves with one stride.
template <typename F, Clamp C, typename T, bool EAGER, bool INTERLEAVED, Access A>
__device__ __forceinline__ void act_and_mul(const ActParams& p) {
    constexpr int N = lanes<T, A>();
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.vectors) {
        begin();
        return;
    }
    const uint32_t row = p.by_row.quotient(i);
    const uint32_t column = (i - row * p.row_vectors) * N;
    const uint64_t from = row * p.gate_stride + (INTERLEAVED ? 2ull * column : column);
    const uint64_t to = row * p.output_stride + column;
    begin();
    if (p.counts != nullptr && !in_use(p, row)) return;
    float gate[N], up[N];
    load_halves<T, N, INTERLEAVED>(p.gate, p.up, from, gate, up);
    bool lost = false;
    const auto out = activate<F, C, T, EAGER>(gate, up, p.scalars, lost);
#if __CUDA_ARCH__ >= 1000
    if constexpr (A == Access::Bytes32) store32((T*)p.output + to, out);
    else
#endif
    *(Vector<T, N>*)((T*)p.output + to) = out;
    if (lost) {
        const T* first = (const T*)p.gate + from;
        const T* second = INTERLEAVED ? first + 1 : (const T*)p.up + from;
        rewrite<F, C, T, INTERLEAVED ? 2 : 1>(first, second, (T*)p.output + to, N, p.scalars);
    }
}

// Rows that lie anywhere: a thread has the outputs between two multiples of 16 bytes. At the ends of a row, where these
// are fewer than a vector, it takes the row's first or last ones, some of which a neighbor writes as well: so all
// threads go one way.
template <typename F, Clamp C, typename T, bool EAGER, bool INTERLEAVED>
__device__ __forceinline__ void act_and_mul_anywhere(const ActParams& p) {
    constexpr int N = lanes<T, Access::Any>(), APART = INTERLEAVED ? 2 : 1;
    using V = Vector<T, N>;
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t row = p.by_row.quotient(i);
    T* const to = (T*)p.output + row * p.output_stride;
    // Of the vector: its first may lie before the row's.
    const int column = (int)(i - row * p.row_vectors) * N - (int)(behind16(to) / sizeof(T));
    const int d = (int)p.d;
    const int start = max(min(column, d - N), 0);
    const T* const first = early((const T*)p.gate + row * p.gate_stride + APART * (uint32_t)start);
    const T* const ups = (const T*)p.up + row * p.up_stride + (uint32_t)start;
    const T* const second = early(INTERLEAVED ? first + N : ups);
    T* const place = early(to + (uint32_t)start);
    // Memory may end within the last block: it is read if another vector of the row, or another row, lies behind.
    const bool whole = start + 2 * N <= d || i + p.row_vectors < p.vectors;
    begin();
    if (i >= p.vectors || column >= d || (p.counts != nullptr && !in_use(p, row))) return;

    float gate[N], up[N];
    if (d >= N) {
        const Anywhere<T> a(first, whole), b(second, whole);
        widen_halves<N, V, INTERLEAVED>(a.template vector<V>(), b.template vector<V>(), gate, up);
    } else {
        const T* const one = INTERLEAVED ? first + 1 : second;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            gate[j] = j < d ? widen(first[APART * j]) : 0.0f;
            up[j] = j < d ? widen(one[APART * j]) : 0.0f;
        }
    }
    bool lost = false;
    const auto out = activate<F, C, T, EAGER>(gate, up, p.scalars, lost);
    if (start == column && d >= N) {
        store16(place, out);
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (j < d) place[j] = out.x[j];
        }
    }
    if (lost) {
        // Where this is is found out again: kept, it would take registers from the usual way.
        uint32_t again = i;
        asm volatile("" : "+r"(again));
        const uint32_t in = p.by_row.quotient(again);
        T* const there = (T*)p.output + in * p.output_stride;
        const int at = (int)(again - in * p.row_vectors) * N - (int)(behind16(there) / sizeof(T));
        const uint32_t from = max(min(at, (int)p.d - N), 0);
        const T* gates = (const T*)p.gate + in * p.gate_stride + APART * from;
        const T* ups = INTERLEAVED ? gates + 1 : (const T*)p.up + in * p.up_stride + from;
        rewrite<F, C, T, APART>(gates, ups, there + from, min(N, (int)p.d), p.scalars);
    }
}

// Kernels are named act_<function>_<clamp>_<layout>_<type>_<rounding>_<access>.
#define KERNEL(NAME, BOUNDS, F, C, T, EAGER, INTERLEAVED, ACCESS)                               \
    extern "C" __global__ void __launch_bounds__ BOUNDS NAME(const __grid_constant__ ActParams p) { \
        if constexpr (Access::ACCESS == Access::Any)                                            \
            act_and_mul_anywhere<F, Clamp::C, T, EAGER, INTERLEAVED>(p);                        \
        else act_and_mul<F, Clamp::C, T, EAGER, INTERLEAVED, Access::ACCESS>(p);                \
    }
#define WIDTHS(NAME, ...)                             \
    KERNEL(NAME##_any, (1024), __VA_ARGS__, Any)      \
    KERNEL(NAME##_16bytes, (1024), __VA_ARGS__, Bytes16)
// f32 rounds to itself: its two modes are one.
#define FORM(NAME, F, C, INTERLEAVED)                                     \
    WIDTHS(act_##NAME##_f32_official, F, C, float, false, INTERLEAVED)    \
    WIDTHS(act_##NAME##_f16_official, F, C, f16, false, INTERLEAVED)      \
    WIDTHS(act_##NAME##_f16_eager, F, C, f16, true, INTERLEAVED)          \
    WIDTHS(act_##NAME##_bf16_official, F, C, bf16, false, INTERLEAVED)    \
    WIDTHS(act_##NAME##_bf16_eager, F, C, bf16, true, INTERLEAVED)
FORMS(FORM)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 1000
#define WIDE(NAME, F, C, INTERLEAVED)                                                           \
    KERNEL(act_##NAME##_f32_official_32bytes, (1024), F, C, float, false, INTERLEAVED, Bytes32) \
    KERNEL(act_##NAME##_f16_official_32bytes, (1024), F, C, f16, false, INTERLEAVED, Bytes32)   \
    KERNEL(act_##NAME##_bf16_official_32bytes, (1024), F, C, bf16, false, INTERLEAVED, Bytes32)
TUNED_FORMS(WIDE)
#endif

// The limit that the activation is measured against: as many bytes read and written, in whole
// 16-byte vectors: reads two, writes one.
extern "C" __global__ void __launch_bounds__(1024) copy_16bytes(const __grid_constant__ ActParams p) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    begin();
    if (i >= p.vectors) return;
    const uint4 a = ((const uint4*)p.gate)[i], b = ((const uint4*)p.up)[i];
    ((uint4*)p.output)[i] = make_uint4(a.x ^ b.x, a.y ^ b.y, a.z ^ b.z, a.w ^ b.w);
}
