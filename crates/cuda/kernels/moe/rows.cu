// The rows of a layer of routed experts beside their matmuls: what a quantization leaves of them, and their sums.
#include "../common/fp8.cuh"
#include "../common/memory.cuh"
#include <cuda_fp8.h>

enum RowType : uint32_t { R_F32, R_F16, R_BF16 };

template <uint32_t N, typename T>
__device__ __forceinline__ void widen_row(const void* base, uint64_t at, float (&to)[N]) {
    const auto v = load<T, N>(base, at);
    widen_all(v, to);
}
// N numbers of a row whose type is known when it runs.
template <uint32_t N>
__device__ __forceinline__ void widen_row(const void* base, uint32_t type, uint64_t at, float (&to)[N]) {
    if (type == R_BF16) widen_row<N, bf16>(base, at, to);
    else if (type == R_F16) widen_row<N, f16>(base, at, to);
    else widen_row<N, float>(base, at, to);
}
template <uint32_t N, typename T>
__device__ __forceinline__ void narrow_row(void* base, uint64_t at, const float (&from)[N]) {
    Vector<T, N> v;
#pragma unroll
    for (uint32_t i = 0; i < N; ++i) v.x[i] = narrow<T>(from[i]);
    *(Vector<T, N>*)((T*)base + at) = v;
}

// The twin of `WidenParams` in src/launch/params.rs.
struct WidenParams {
    const void* from;           // [rows, columns]
    bf16* to;                   // [rows, columns], may be the same
    const int32_t* offsets;     // of experts, whose rows these are; null for all rows
    uint64_t from_stride, to_stride;  // elements
    uint32_t rows, columns, groups;
    Divisor by_groups;
    uint32_t group;             // elements, a multiple of 32 up to 128
    uint32_t first, experts;    // which experts
    uint32_t power_of_two;      // whether scales are
    uint32_t from_type;         // RowType
    float floor;
};
TWIN_SIZE(WidenParams, 88);
TWIN_FIELD(WidenParams, from, 0);
TWIN_FIELD(WidenParams, to, 8);
TWIN_FIELD(WidenParams, offsets, 16);
TWIN_FIELD(WidenParams, from_stride, 24);
TWIN_FIELD(WidenParams, to_stride, 32);
TWIN_FIELD(WidenParams, rows, 40);
TWIN_FIELD(WidenParams, columns, 44);
TWIN_FIELD(WidenParams, groups, 48);
TWIN_FIELD(WidenParams, by_groups, 52);
TWIN_FIELD(WidenParams, group, 60);
TWIN_FIELD(WidenParams, first, 64);
TWIN_FIELD(WidenParams, experts, 68);
TWIN_FIELD(WidenParams, power_of_two, 72);
TWIN_FIELD(WidenParams, from_type, 76);
TWIN_FIELD(WidenParams, floor, 80);

// Rows to FP8 codes in groups and back to bf16, as two kernels of ../quant would take and give them: a warp to a
// group, whose numbers are all read before one is written.
extern "C" __global__ void __launch_bounds__(256)
moe_widen(const __grid_constant__ WidenParams p) {
    const uint32_t lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    begin();
    uint32_t row0 = 0, rows = p.rows;
    if (p.offsets != nullptr) row0 = p.offsets[p.first], rows = p.offsets[p.first + p.experts] - row0;
    const uint32_t items = rows * p.groups;
    for (uint32_t item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; item < items; item += warps) {
        const uint32_t of = p.by_groups.quotient(item), group = item - of * p.groups;
        const uint64_t row = row0 + of;
        float x[4] = {};
        uint32_t amax = __float_as_uint(p.floor);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t in_group = 32 * i + lane, column = group * p.group + in_group;
            if (in_group >= p.group || column >= p.columns) continue;
            float one[1];
            widen_row<1>(p.from, p.from_type, row * p.from_stride + column, one);
            x[i] = one[0];
            // As an integer a NaN is larger than any number.
            amax = max(amax, __float_as_uint(fabsf(x[i])));
        }
#pragma unroll
        for (uint32_t step = 16; step > 0; step /= 2) amax = max(amax, __shfl_xor_sync(~0u, amax, step));
        float scale;
        if (p.power_of_two) {
            const uint32_t byte = power_of_two_scale(amax);
            const float inverse = inverse_power(byte);
            scale = power(byte);
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) x[i] *= inverse;
        } else {
            scale = narrow<float>(__uint_as_float(amax) / 448.0f);
            const Division over(scale);
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) x[i] = over(x[i]);
        }
        const uint32_t codes = encode4(x);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            const uint32_t in_group = 32 * i + lane, column = group * p.group + in_group;
            if (in_group >= p.group || column >= p.columns) continue;
            __nv_fp8_e4m3 code;
            code.__x = (uint8_t)(codes >> 8 * i);
            const double exact = (double)(float)code * scale;
            p.to[row * p.to_stride + column] = p.power_of_two ? narrow<bf16>((float)code * scale) : narrow<bf16>(exact);
        }
    }
}

// The twin of `SumParams` in src/launch/params.rs.
struct SumParams {
    const bf16* outputs;     // [rows, columns], as experts gave them, without gaps
    const void* shared;      // [tokens, columns], or null
    void* y;                 // [tokens, columns]
    const int32_t* offsets;  // of experts
    const int32_t* rows;     // [tokens, top_k]
    uint64_t shared_stride, y_stride;  // elements
    uint32_t tokens, columns, top_k;
    uint32_t first, experts;          // which experts these are
    uint32_t shared_type, y_type;     // RowType
    uint32_t sorted_before;           // whether routes are there before the kernel before this one ends
};
TWIN_SIZE(SumParams, 88);
TWIN_FIELD(SumParams, outputs, 0);
TWIN_FIELD(SumParams, shared, 8);
TWIN_FIELD(SumParams, y, 16);
TWIN_FIELD(SumParams, offsets, 24);
TWIN_FIELD(SumParams, rows, 32);
TWIN_FIELD(SumParams, shared_stride, 40);
TWIN_FIELD(SumParams, y_stride, 48);
TWIN_FIELD(SumParams, tokens, 56);
TWIN_FIELD(SumParams, columns, 60);
TWIN_FIELD(SumParams, top_k, 64);
TWIN_FIELD(SumParams, first, 68);
TWIN_FIELD(SumParams, experts, 72);
TWIN_FIELD(SumParams, shared_type, 76);
TWIN_FIELD(SumParams, y_type, 80);
TWIN_FIELD(SumParams, sorted_before, 84);

// A token's rows in ascending order, which is their experts', added in f32; then what the shared expert gave, and one
// rounding. A thread makes N columns, and reads several rows before it adds them.
template <uint32_t N> __device__ __forceinline__ void sum_rows(const SumParams& p) {
    constexpr uint32_t AT_ONCE = 8;
    const uint32_t column = (blockIdx.x * blockDim.x + threadIdx.x) * N;
    let_next_start();
    if (!p.sorted_before) wait_for_last();
    const uint32_t row0 = __ldcg(p.offsets + p.first), rows = __ldcg(p.offsets + p.first + p.experts) - row0;
    // -1 of no expert, and of an expert that is another rank's.
    int32_t row[AT_ONCE];
    const auto find_rows = [&](uint32_t token, uint32_t first) {
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; ++i) {
            row[i] = first + i < p.top_k ? __ldcg(p.rows + (uint64_t)token * p.top_k + first + i) : -1;
            if ((uint32_t)row[i] - row0 >= rows) row[i] = -1;
        }
    };
    find_rows(blockIdx.y, 0);
    if (p.sorted_before) wait_for_last();
    if (column >= p.columns) return;
    for (uint32_t token = blockIdx.y; token < p.tokens; token += gridDim.y) {
        float sum[N] = {}, term[N];
        for (uint32_t first = 0; first < p.top_k; first += AT_ONCE) {
            if (token != blockIdx.y || first > 0) find_rows(token, first);
            Vector<bf16, N> read[AT_ONCE];
#pragma unroll
            for (uint32_t i = 0; i < AT_ONCE; ++i) {
                if (row[i] >= 0) read[i] = load<bf16, N>(p.outputs, (uint64_t)row[i] * p.columns + column);
            }
#pragma unroll
            for (uint32_t i = 0; i < AT_ONCE; ++i) {
                if (row[i] < 0) continue;
                widen_all(read[i], term);
#pragma unroll
                for (uint32_t j = 0; j < N; ++j) sum[j] += term[j];
            }
        }
        if (p.shared != nullptr) {
            widen_row<N>(p.shared, p.shared_type, token * p.shared_stride + column, term);
#pragma unroll
            for (uint32_t j = 0; j < N; ++j) sum[j] += term[j];
        }
        const uint64_t at = token * p.y_stride + column;
        if (p.y_type == R_BF16) narrow_row<N, bf16>(p.y, at, sum);
        else if (p.y_type == R_F16) narrow_row<N, f16>(p.y, at, sum);
        else narrow_row<N, float>(p.y, at, sum);
    }
}
extern "C" __global__ void __launch_bounds__(256)
moe_sum_vectors(const __grid_constant__ SumParams p) { sum_rows<4>(p); }
extern "C" __global__ void __launch_bounds__(256)
moe_sum_elements(const __grid_constant__ SumParams p) { sum_rows<1>(p); }
