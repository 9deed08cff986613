// Rows of numbers in groups, each with a scale: where a thread stands, and what it writes.
#pragma once
#include "../common/fp8.cuh"
#include "../activation/functions.cuh"
#include "../common/memory.cuh"

// The twin of `QuantParams` in src/launch/params.rs. A group is 2^group_log threads, the last of which have
// nothing where the row ends.
struct QuantParams {
    const void* gate;      // the input; of concatenated halves, the gate's
    const void* up;        // not read of interleaved rows
    uint8_t* codes;
    void* scales;
    const float* route;    // a weight of each row, or null
    const int32_t* counts; // rows in use of each batch, or null: all rows are
    uint32_t* hits;        // three counters, or null
    uint64_t gate_stride, up_stride, codes_stride;  // elements from row to row
    uint64_t scale_row, scale_word;       // scales from row to row, and from word to word
    uint32_t threads;      // in all
    uint32_t row_threads;  // in a row
    Divisor by_row;        // by row_threads
    uint32_t batch_rows;   // rows of a batch
    uint32_t first_row;    // of this launch, for counts
    Divisor by_batch;      // by batch_rows
    uint32_t d;            // elements of a row
    uint32_t groups;       // of a row
    uint32_t group_log;
    uint32_t word_log;     // groups in a word of scales: 2^0 or 2^2
    uint32_t power_of_two; // E8M0 scales, else f32
    uint32_t materialize;  // whether y is rounded before amax
    float floor;
    Scalars scalars;
};
TWIN_SIZE(QuantParams, 176);
TWIN_FIELD(QuantParams, gate, 0);
TWIN_FIELD(QuantParams, up, 8);
TWIN_FIELD(QuantParams, codes, 16);
TWIN_FIELD(QuantParams, scales, 24);
TWIN_FIELD(QuantParams, route, 32);
TWIN_FIELD(QuantParams, counts, 40);
TWIN_FIELD(QuantParams, hits, 48);
TWIN_FIELD(QuantParams, gate_stride, 56);
TWIN_FIELD(QuantParams, up_stride, 64);
TWIN_FIELD(QuantParams, codes_stride, 72);
TWIN_FIELD(QuantParams, scale_row, 80);
TWIN_FIELD(QuantParams, scale_word, 88);
TWIN_FIELD(QuantParams, threads, 96);
TWIN_FIELD(QuantParams, row_threads, 100);
TWIN_FIELD(QuantParams, by_row, 104);
TWIN_FIELD(QuantParams, batch_rows, 112);
TWIN_FIELD(QuantParams, first_row, 116);
TWIN_FIELD(QuantParams, by_batch, 120);
TWIN_FIELD(QuantParams, d, 128);
TWIN_FIELD(QuantParams, groups, 132);
TWIN_FIELD(QuantParams, group_log, 136);
TWIN_FIELD(QuantParams, word_log, 140);
TWIN_FIELD(QuantParams, power_of_two, 144);
TWIN_FIELD(QuantParams, materialize, 148);
TWIN_FIELD(QuantParams, floor, 152);
TWIN_FIELD(QuantParams, scalars, 156);

// What a thread takes of a row: vectors of N elements that lie as far apart as a group has threads, so
// that side by side threads read side by side vectors.
template <typename T, int ELEMENTS_> struct Part {
    static constexpr int ELEMENTS = ELEMENTS_;
    static constexpr int N = ELEMENTS * (int)sizeof(T) < 16 ? ELEMENTS : 16 / (int)sizeof(T);
    static constexpr int VECTORS = ELEMENTS / N;
};

template <int N> struct Place {
    uint32_t row, group, column;
    uint32_t step;   // from vector to vector
    uint32_t left;   // elements from the column to the end of the row, 0 in rows that are not in use
    bool first;      // of its group, which is in use

    // Elements of a vector that are in use.
    __device__ __forceinline__ uint32_t count(int vector) const {
        const uint32_t before = vector * step;
        return left > before ? min(left - before, (uint32_t)N) : 0;
    }
};

template <int N, int VECTORS> __device__ __forceinline__ Place<N> place(const QuantParams& p) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t row = p.by_row.quotient(i), in_row = i - row * p.row_threads;
    const uint32_t group = in_row >> p.group_log, of_group = in_row - (group << p.group_log);
    const uint32_t column = ((group * VECTORS << p.group_log) + of_group) * N;
    const uint32_t left = i < p.threads && column < p.d ? p.d - column : 0;
    return {row, group, column, (uint32_t)N << p.group_log, left, left > 0 && of_group == 0};
}

// What a kernel knows of its calls. One that knows nothing asks its parameters.
enum class Known {
    Nothing,
    E8m0,  // these scales; all rows are in use, no route weights, y is rounded before amax
    F32,
};

// Where a thread's first code and its group's scale lie, and what else the reduction of a group is followed by. It is
// made before a wait for memory: the compiler would put it behind the reduction.
struct Target {
    uint8_t* codes;
    void* scale;
    uint32_t floor, group_log;

    template <Known KNOWN, int N> static __device__ __forceinline__ Target of(const QuantParams& p, const Place<N>& at) {
        const uint32_t of_word = at.group & ((1u << p.word_log) - 1);
        const uint64_t scale = at.row * p.scale_row + (at.group >> p.word_log) * p.scale_word + of_word;
        const bool bytes = KNOWN == Known::Nothing ? p.power_of_two : KNOWN == Known::E8m0;
        uint32_t floor = __float_as_uint(p.floor), group_log = p.group_log;
        asm volatile("" : "+r"(floor), "+r"(group_log));
        return {
            early(p.codes + at.row * p.codes_stride + at.column),
            early((uint8_t*)p.scales + (bytes ? scale : 4 * scale)),
            floor,
            group_log,
        };
    }
};

// Takes rows that are not in use away.
template <int N> __device__ __forceinline__ void mask(const QuantParams& p, Place<N>& at) {
    if (p.counts == nullptr || at.left == 0) return;
    const uint32_t row = at.row + p.first_row, batch = p.by_batch.quotient(row);
    if ((int64_t)(row - batch * p.batch_rows) >= (int64_t)p.counts[batch]) {
        at.left = 0;
        at.first = false;
    }
}

// The largest of a group's numbers. All threads of the warp take part.
__device__ __forceinline__ uint32_t group_max(uint32_t x, uint32_t group_log) {
    constexpr uint32_t ALL = 0xffffffffu;
    if (group_log == 5) return __reduce_max_sync(ALL, x);
    if (group_log == 4) {
        // Two reductions side by side take less time than four shuffles in turn.
        const bool upper = threadIdx.x & 16;
        const uint32_t low = __reduce_max_sync(ALL, upper ? 0 : x);
        const uint32_t high = __reduce_max_sync(ALL, upper ? x : 0);
        return upper ? high : low;
    }
    for (uint32_t step = (1u << group_log) / 2; step > 0; step /= 2) {
        x = max(x, __shfl_xor_sync(ALL, x, step));
    }
    return x;
}

// Writes a thread's codes and, once for each group, the scale. y is 0 beyond the end of a row.
// All threads of the warp take part.
template <int N, int VECTORS, bool ALIGNED, Known KNOWN>
__device__ __forceinline__ void write_quantized(
    const QuantParams& p, const Place<N>& at, const Target& to, float (&y)[N * VECTORS]) {
    constexpr int ELEMENTS = N * VECTORS;
    float largest[ELEMENTS / 2];
#pragma unroll
    for (int j = 0; j < ELEMENTS / 2; ++j) {
        largest[j] = max_nan(fabsf(y[j]), fabsf(y[j + ELEMENTS / 2]));
    }
#pragma unroll
    for (int n = ELEMENTS / 4; n > 0; n /= 2) {
#pragma unroll
        for (int j = 0; j < n; ++j) largest[j] = max_nan(largest[j], largest[j + n]);
    }
    // As an integer a NaN is larger than any number.
    const uint32_t amax = max(group_max(__float_as_uint(largest[0]), to.group_log), to.floor);

    const bool bytes = KNOWN == Known::Nothing ? p.power_of_two : KNOWN == Known::E8m0;
    uint32_t scale;
    if (bytes) {
        scale = power_of_two_scale(amax);
        const float inverse = inverse_scale(amax);
#pragma unroll
        for (int j = 0; j < ELEMENTS; ++j) y[j] *= inverse;
    } else {
        const float number = narrow<float>(__uint_as_float(amax) / 448.0f);
        scale = __float_as_uint(number);
        const Division over(number);
#pragma unroll
        for (int j = 0; j < ELEMENTS; ++j) y[j] = over(y[j]);
    }

#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const uint32_t count = at.count(v);
        if (count == 0) break;
        uint8_t* const codes = to.codes + v * at.step;
        Vector<uint32_t, N / 4> words;
#pragma unroll
        for (int j = 0; j < N; j += 4) words.x[j / 4] = encode4(y + v * N + j);
        if constexpr (ALIGNED) {
            *(Vector<uint32_t, N / 4>*)codes = words;
        } else {
#pragma unroll
            for (int j = 0; j < N; ++j) {
                if (j < count) codes[j] = (uint8_t)(words.x[j / 4] >> 8 * (j % 4));
            }
        }
    }
    if (!at.first) return;
    if (!bytes) {
        *(uint32_t*)to.scale = scale;
        return;
    }
    uint8_t* byte = (uint8_t*)to.scale;
    *byte = (uint8_t)scale;
    // A word is filled up with zeros after the last group.
    if (at.group + 1 != p.groups) return;
    const uint32_t words = 1u << p.word_log;
    for (uint32_t g = p.groups; g % words != 0; ++g) *++byte = 0;
}
