// The activation and the quantization of what it gives in one pass: y goes from its registers to
// codes, and no matrix of y is written.
//
// ## Method
// 1. The threads of a group are 1 to 32 of one warp; each has 4 to 16 elements of it.
// 2. Addresses are computed before the loads are waited for: these kernels are bound by instructions.
// 3. y is computed as in activation.cu, multiplied by the route weight and rounded where that is asked for.
// 4. The largest magnitude of a group gives its scale, and the codes follow (quantize.cuh).
#include "../activation/instances.cuh"
#include "quantize.cuh"

// Adds up the hits of a block, and then to the counters once. All threads of the block take part.
__device__ __forceinline__ void add_hits(uint32_t* counters, uint32_t hits) {
    constexpr uint32_t ALL = 0xffffffffu, MASK = (1u << HIT_BITS) - 1;
    __shared__ uint32_t of_warp[32];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // 32 threads of 8 elements: at most 256 of each.
    hits = __reduce_add_sync(ALL, hits);
    if (lane == 0) of_warp[warp] = hits;
    __syncthreads();
    if (warp != 0) return;
    const uint32_t mine = lane < blockDim.x / 32 ? of_warp[lane] : 0;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const uint32_t sum = __reduce_add_sync(ALL, mine >> i * HIT_BITS & MASK);
        if (lane == 0 && sum > 0) atomicAdd(counters + i, sum);
    }
}

// A thread's inputs, one by one. Where they lie is found out again: kept, it would take registers from the usual way.
template <typename T, bool INTERLEAVED, int N, int VECTORS> struct Inputs {
    static constexpr int APART = INTERLEAVED ? 2 : 1;
    Place<N> at;
    const T *gates, *ups;

    __device__ __forceinline__ explicit Inputs(const QuantParams& p) : at(place<N, VECTORS>(p)) {
        gates = (const T*)p.gate + at.row * p.gate_stride + APART * (uint64_t)at.column;
        ups = INTERLEAVED ? gates + 1 : (const T*)p.up + at.row * p.up_stride + at.column;
    }
    // Does something with each: its number, the gate and the up half.
    template <typename Use> __device__ __forceinline__ void each(Use use) const {
#pragma unroll 1
        for (uint32_t j = 0; j < VECTORS * N; ++j) {
            const uint32_t from = j / N * at.step + j % N;
            if (from < at.left) use(j, widen(gates[APART * from]), widen(ups[APART * from]));
        }
    }
};

// Those of a thread's outputs that f32 lost once more, out of memory.
template <typename F, Clamp C, typename T, bool INTERLEAVED, int N, int VECTORS>
__device__ __noinline__ void mend(const QuantParams& p, float* y) {
    Inputs<T, INTERLEAVED, N, VECTORS>(p).each([&](uint32_t j, float g, float u) {
        bool lost = false;
        gated_or_lost<F, C, T, false>(g, u, p.scalars, lost);
        if (lost) y[j] = gated_wide<F, C, T>(g, u, p.scalars);
    });
}

// Counts the clamp's hits, out of memory: they are rarely asked for.
template <typename F, Clamp C, typename T, bool EAGER, bool INTERLEAVED, int N, int VECTORS>
__device__ __noinline__ void count_hits(const QuantParams& p) {
    Inputs<T, INTERLEAVED, N, VECTORS> inputs(p);
    mask(p, inputs.at);
    uint32_t hits = 0;
    inputs.each([&](uint32_t, float g, float u) { hits += clamp_hits<F, C, T, EAGER>(g, u, p.scalars); });
    add_hits(p.hits, hits);
}

template <typename F, Clamp C, typename T, bool EAGER, bool INTERLEAVED, typename P, bool ALIGNED, Known KNOWN>
__device__ __forceinline__ void act_and_quantize(const QuantParams& p) {
    constexpr int N = P::N, VECTORS = P::VECTORS;
    Place<N> at = place<N, VECTORS>(p);
    const Target to = Target::of<KNOWN>(p, at);
    constexpr uint32_t APART = INTERLEAVED ? 2 : 1;
    // Vectors are taken of halves with one stride.
    const uint64_t from = at.row * p.gate_stride + APART * at.column;
    const uint64_t up_from = ALIGNED ? from : at.row * p.up_stride + at.column;
    const T* const gates = early((const T*)p.gate + from);
    const T* const ups = INTERLEAVED ? gates + 1 : early((const T*)p.up + up_from);
    begin();
    if constexpr (KNOWN == Known::Nothing) mask(p, at);

    float y[VECTORS * N] = {};
    if (at.left > 0) {
        float gate[VECTORS][N] = {}, up[VECTORS][N] = {};
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
            const uint32_t count = at.count(v);
            const uint32_t first = APART * v * at.step;
            if constexpr (ALIGNED) {
                if (count > 0) load_halves<T, N, INTERLEAVED>(gates, ups, first, gate[v], up[v]);
            } else {
#pragma unroll
                for (uint32_t j = 0; j < N; ++j) {
                    if (j >= count) continue;
                    gate[v][j] = widen(gates[first + APART * j]), up[v][j] = widen(ups[first + APART * j]);
                }
            }
        }
        // Zeros beyond the end of a row stay zeros under every function.
        bool lost = false;
#pragma unroll
        for (int j = 0; j < VECTORS * N; ++j) {
            const float g = gate[j / N][j % N], u = up[j / N][j % N];
            y[j] = gated_or_lost<F, C, T, EAGER>(g, u, p.scalars, lost);
        }
        if (lost) {
            // Through local memory, and only here: a function out of line takes no register from the usual way.
            float all[VECTORS * N];
#pragma unroll
            for (int j = 0; j < VECTORS * N; ++j) all[j] = y[j];
            mend<F, C, T, INTERLEAVED, N, VECTORS>(p, all);
#pragma unroll
            for (int j = 0; j < VECTORS * N; ++j) y[j] = all[j];
        }
        if (KNOWN == Known::Nothing && p.route != nullptr) {
            const float route = p.route[at.row];
#pragma unroll
            for (int j = 0; j < VECTORS * N; ++j) {
                // Not beyond the end of a row, where an infinite one makes NaN of 0.
                if (j % N < at.count(j / N)) y[j] *= route;
            }
        }
        if (KNOWN != Known::Nothing || p.materialize) {
#pragma unroll
            for (int j = 0; j < VECTORS * N; j += 2) round_pair<T>(y[j], y[j + 1]);
        }
    }
    write_quantized<N, VECTORS, ALIGNED, KNOWN>(p, at, to, y);
    if constexpr (C != Clamp::None && KNOWN == Known::Nothing) {
        if (p.hits != nullptr) count_hits<F, C, T, EAGER, INTERLEAVED, N, VECTORS>(p);
    }
}

// Kernels are named quant_<function>_<clamp>_<layout>_<type>_<rounding>_<access>. DeepSeek's activations have forms
// besides that know their scales, of 4, 8 and 16 elements a thread: which is fastest depends on the size of the call. Of few
// outputs one of 8 elements that has 32 registers and not 40 is.
#define KERNEL(NAME, BOUNDS, ELEMENTS, ALIGNED, KNOWN, F, C, T, EAGER, INTERLEAVED)                     \
    extern "C" __global__ void __launch_bounds__ BOUNDS NAME(const __grid_constant__ QuantParams p) {   \
        using P = Part<T, ELEMENTS>;                                                                    \
        act_and_quantize<F, Clamp::C, T, EAGER, INTERLEAVED, P, ALIGNED, Known::KNOWN>(p);              \
    }
#define ANY_SCALES(NAME, ...)                                     \
    KERNEL(NAME##_element, (512), 4, false, Nothing, __VA_ARGS__) \
    KERNEL(NAME##_vectors, (512), 8, true, Nothing, __VA_ARGS__)
#define KNOWN_SCALES(NAME, ...)                                      \
    KERNEL(NAME##_4_e8m0, (512), 4, true, E8m0, __VA_ARGS__)         \
    KERNEL(NAME##_8_few_e8m0, (512, 4), 8, true, E8m0, __VA_ARGS__)  \
    KERNEL(NAME##_8_e8m0, (512), 8, true, E8m0, __VA_ARGS__)         \
    KERNEL(NAME##_16_e8m0, (512), 16, true, E8m0, __VA_ARGS__)       \
    KERNEL(NAME##_4_f32, (512), 4, true, F32, __VA_ARGS__)           \
    KERNEL(NAME##_8_few_f32, (512, 4), 8, true, F32, __VA_ARGS__)    \
    KERNEL(NAME##_8_f32, (512), 8, true, F32, __VA_ARGS__)           \
    KERNEL(NAME##_16_f32, (512), 16, true, F32, __VA_ARGS__)
#define TYPES(ACCESSES, NAME, F, C, INTERLEAVED)                    \
    ACCESSES(NAME##_f32_official, F, C, float, false, INTERLEAVED)  \
    ACCESSES(NAME##_f16_official, F, C, f16, false, INTERLEAVED)    \
    ACCESSES(NAME##_f16_eager, F, C, f16, true, INTERLEAVED)        \
    ACCESSES(NAME##_bf16_official, F, C, bf16, false, INTERLEAVED)  \
    ACCESSES(NAME##_bf16_eager, F, C, bf16, true, INTERLEAVED)

#define FORM(NAME, F, C, INTERLEAVED) TYPES(ANY_SCALES, quant_##NAME, F, C, INTERLEAVED)
FORMS(FORM)

#define TUNED(NAME, F, C, INTERLEAVED) TYPES(KNOWN_SCALES, quant_##NAME, F, C, INTERLEAVED)
TUNED_FORMS(TUNED)
