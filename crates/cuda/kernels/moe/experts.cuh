// Matmuls of routed experts: what their kernels share.
//
// ## Method
// 1. Rows are routes sorted by expert (core's `Routes`): those of expert e are offsets[e] to offsets[e + 1]. The
//    weights of all experts lie in one piece, one expert's after another's.
// 2. An expert's rows are cut into tiles. Every block adds up how many tiles the experts have, so that nothing
//    has to come back to the host: an expert without rows has none, and its weight is not read.
// 3. A launch has as many blocks as the device holds at once. Each takes one item after another: a tile of rows
//    by a piece of their expert's weight.
// 4. FP4 becomes bf16 in registers, times its scale, which is exact. A product of bf16s is exact, sums are f32's.
// 5. The first half rounds gates and ups to bf16, and the activation takes the route's weight along before its one
//    rounding. The second half's outputs are rounded at their rows; rows.cu adds up those of a token.
#pragma once
#include "../activation/instances.cuh"
#include "../activation/functions.cuh"
#include "../common/fp8.cuh"
#include "../matmul/matmul.cuh"

// How experts are stored: the twin of `ExpertFormat` in src/weight/stack.rs.
enum ExpertFormat : uint32_t { W_F32, W_F16, W_BF16, W_E4M3, W_E2M1, W_PACKED };

// The twin of `ExpertsParams` in src/launch/params.rs.
struct ExpertsParams {
    const void* x;               // the first half: [T, H]; the second: [rows, I] of bf16
    const uint8_t* w;            // of the first expert
    const void* scales;          // FP4: a byte for each 32 of k of a row; FP8: f32 [scale rows, scale_columns];
                                 // packed FP4: a byte for each expert, its mark (packed.cuh)
    const uint32_t* scale_rows;  // FP8: the row of scales of each row of w
    bf16* y;                     // [rows, outputs]
    const int32_t* offsets;
    const int32_t* sorted;
    const float* weights;        // of routes
    uint64_t x_stride, y_stride;      // elements
    uint64_t w_stride, scale_stride;  // from expert to expert: bytes; bytes or f32s
    uint64_t scale_row_stride;        // likewise: u32s
    uint32_t outputs, k;         // of a row: I or H, of H or I
    uint32_t first, experts;     // which experts these are, and how many
    uint32_t top_k;
    uint32_t scale_columns;
    Divisor by_block;            // FP8: by the columns of a block of scales
    uint32_t pieces;             // of a weight
    Divisor by_pieces;
    uint32_t format, x_type;     // ExpertFormat, YType: for the kernel of any types
    uint32_t form;               // the place of the activation in FORMS
    Scalars scalars;
    uint32_t sorted_before;      // whether routes are there before the kernel before this one ends
};
TWIN_SIZE(ExpertsParams, 184);
TWIN_FIELD(ExpertsParams, x, 0);
TWIN_FIELD(ExpertsParams, w, 8);
TWIN_FIELD(ExpertsParams, scales, 16);
TWIN_FIELD(ExpertsParams, scale_rows, 24);
TWIN_FIELD(ExpertsParams, y, 32);
TWIN_FIELD(ExpertsParams, offsets, 40);
TWIN_FIELD(ExpertsParams, sorted, 48);
TWIN_FIELD(ExpertsParams, weights, 56);
TWIN_FIELD(ExpertsParams, x_stride, 64);
TWIN_FIELD(ExpertsParams, y_stride, 72);
TWIN_FIELD(ExpertsParams, w_stride, 80);
TWIN_FIELD(ExpertsParams, scale_stride, 88);
TWIN_FIELD(ExpertsParams, scale_row_stride, 96);
TWIN_FIELD(ExpertsParams, outputs, 104);
TWIN_FIELD(ExpertsParams, k, 108);
TWIN_FIELD(ExpertsParams, first, 112);
TWIN_FIELD(ExpertsParams, experts, 116);
TWIN_FIELD(ExpertsParams, top_k, 120);
TWIN_FIELD(ExpertsParams, scale_columns, 124);
TWIN_FIELD(ExpertsParams, by_block, 128);
TWIN_FIELD(ExpertsParams, pieces, 136);
TWIN_FIELD(ExpertsParams, by_pieces, 140);
TWIN_FIELD(ExpertsParams, format, 148);
TWIN_FIELD(ExpertsParams, x_type, 152);
TWIN_FIELD(ExpertsParams, form, 156);
TWIN_FIELD(ExpertsParams, scalars, 160);
TWIN_FIELD(ExpertsParams, sorted_before, 176);

// Of a block of every kernel of experts.
constexpr uint32_t EXPERT_THREADS = 32 * WARPS;

// Routes are read past the L1, for some kernels read them before they wait (experts_packed.cu).

// Adds up the tiles of the experts: ends[e] becomes how many there are up to e, with it. Returns how many there
// are. All threads of the block take part. Where `begins` is given, begins[e] becomes an expert's first row, and the one
// behind the last where all end.
template <uint32_t ROWS, uint32_t THREADS = EXPERT_THREADS>
__device__ __forceinline__ uint32_t count_tiles(const ExpertsParams& p, uint32_t* ends, uint32_t* begins = nullptr) {
    __shared__ uint32_t of_warp[THREADS / 32];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t before = 0;
    for (uint32_t base = 0; base < p.experts; base += THREADS) {
        const uint32_t e = base + threadIdx.x;
        uint32_t sum = 0;
        if (e < p.experts) {
            const int32_t* const at = p.offsets + p.first + e;
            const uint32_t first = (uint32_t)__ldcg(at), end = (uint32_t)__ldcg(at + 1);
            sum = (end - first + ROWS - 1) / ROWS;
            if (begins != nullptr) begins[e] = first;
            if (begins != nullptr && e == p.experts - 1) begins[e + 1] = end;
        }
#pragma unroll
        for (uint32_t step = 1; step < 32; step *= 2) {
            const uint32_t other = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += other;
        }
        if (lane == 31) of_warp[warp] = sum;
        __syncthreads();
        uint32_t all = 0;
        for (uint32_t i = 0; i < THREADS / 32; ++i) {
            if (i < warp) sum += of_warp[i];
            all += of_warp[i];
        }
        if (e < p.experts) ends[e] = before + sum;
        before += all;
        __syncthreads();
    }
    return before;
}

// Some rows of one expert.
struct ExpertTile {
    uint32_t expert;  // its place among those that are here
    uint32_t row, rows;

    // Whose a tile is: lanes look for the stretch of experts, then in it. All lanes of the warp take part.
    static __device__ __forceinline__ uint32_t expert_of(const ExpertsParams& p, const uint32_t* ends, uint32_t tile) {
        const uint32_t lane = threadIdx.x % 32, last = p.experts - 1, stretch = last / 32 + 1;
        const uint32_t of_lane = min(stretch * (lane + 1) - 1, last);
        uint32_t first = stretch * __popc(__ballot_sync(~0u, ends[of_lane] <= tile));
        for (;; first += 32) {
            const uint32_t before = __ballot_sync(~0u, ends[min(first + lane, last)] <= tile);
            if (~before) return first + __popc(before);
        }
    }
    template <uint32_t ROWS>
    static __device__ __forceinline__ ExpertTile find(
        const ExpertsParams& p, const uint32_t* ends, uint32_t tile) {
        const uint32_t low = expert_of(p, ends, tile);
        const int32_t* const at = p.offsets + p.first + low;
        const uint32_t row = __ldcg(at) + (tile - (low ? ends[low - 1] : 0)) * ROWS;
        return {low, row, min(ROWS, (uint32_t)__ldcg(at + 1) - row)};
    }
    // The same of experts whose first rows the block has.
    template <uint32_t ROWS>
    static __device__ __forceinline__ ExpertTile find(
        const ExpertsParams& p, const uint32_t* ends, const uint32_t* begins, uint32_t tile) {
        const uint32_t low = expert_of(p, ends, tile);
        const uint32_t row = begins[low] + (tile - (low ? ends[low - 1] : 0)) * ROWS;
        return {low, row, min(ROWS, begins[low + 1] - row)};
    }
};

// A row's place in x: that of its token in the first half.
template <bool GATED>
__device__ __forceinline__ uint64_t x_row(const ExpertsParams& p, uint32_t row) {
    return (GATED ? (uint32_t)p.sorted[row] / p.top_k : row) * p.x_stride;
}

// The weight of a row's route in the first half.
template <bool GATED> __device__ __forceinline__ float route_weight(const ExpertsParams& p, uint32_t row) {
    return GATED ? p.weights[p.sorted[row]] : 0.0f;
}

// Sixteen rows of a weight are a group: following ones, or eight of the gate and the matching eight of the up
// half. Beyond the last row the last one stands in, and its results are not stored.
template <bool GATED>
__device__ __forceinline__ uint32_t weight_row(const ExpertsParams& p, uint32_t group, uint32_t r) {
    if constexpr (GATED) return min(8 * group + r % 8, p.outputs - 1) + (r >= 8 ? p.outputs : 0);
    return min(16 * group + r, p.outputs - 1);
}

// Places in FORMS of which there are more outputs than of others.
constexpr uint32_t SILU = 0, SILU_CLAMPED = 1;

// R(op(R(gate), R(up)) * w).
static __device__ __forceinline__ bf16 activate(
    uint32_t form, float gate, float up, float w, const Scalars& s) {
    gate = rounded<bf16>(gate), up = rounded<bf16>(up);
    uint32_t place = 0;
#define FORM(NAME, F, C, INTERLEAVED) \
    if (form == place++) return narrow<bf16>(gated<F, Clamp::C, bf16, false>(gate, up, s) * w);
    FORMS(FORM)
#undef FORM
    return narrow<bf16>(__uint_as_float(0x7fc00000u));
}
// A call, as most of the text of FORMS is never run.
static __device__ __noinline__ bf16 activated(
    uint32_t form, float gate, float up, float w, const Scalars& s) {
    return activate(form, gate, up, w, s);
}

// Stores the sums of one row of x: of row g of a group, `low`, and of row g + 8. In the first half w is its route's.
template <bool GATED>
__device__ __forceinline__ void store_group(
    const ExpertsParams& p, uint32_t row, uint32_t group, uint32_t g, float low, float high, float w) {
    bf16* const y = p.y + row * p.y_stride;
    if constexpr (GATED) {
        const uint32_t j = 8 * group + g;
        if (j < p.outputs) y[j] = activated(p.form, low, high, w, p.scalars);
    } else {
        const uint32_t n = 16 * group + g;
        if (n < p.outputs) y[n] = narrow<bf16>(low);
        if (n + 8 < p.outputs) y[n + 8] = narrow<bf16>(high);
    }
}

// FP4 codes, two a byte, the lower half the even column.
struct e2m1 {};

// 2^(byte - 127) twice, as bf16s; NaN for 255.
__device__ __forceinline__ uint32_t power2(uint32_t byte) {
    const uint32_t one = byte == 255 ? 0x7fc0u : byte == 0 ? 0x0040u : byte << 7;
    return one * 0x10001u;
}

__device__ __forceinline__ uint32_t times2(uint32_t a, uint32_t b) {
    const __nv_bfloat162 out = __hmul2(*(const __nv_bfloat162*)&a, *(const __nv_bfloat162*)&b);
    return *(const uint32_t*)&out;
}

// Two bf16s times the lower or the upper half of a word.
__device__ __forceinline__ uint32_t times_half(uint32_t a, uint32_t b, bool upper) {
    const __nv_bfloat162 by = *(const __nv_bfloat162*)&b;
    const __nv_bfloat162 out = __hmul2(*(const __nv_bfloat162*)&a, upper ? __high2bfloat162(by) : __low2bfloat162(by));
    return *(const uint32_t*)&out;
}

// Eight elements of a row of w as four words of bf16s, and of x in the order that goes with it.
template <typename W> struct Codes;
template <> struct Codes<bf16> {
    static constexpr int BITS = 16;
    static __device__ __forceinline__ void eight(const uint32_t* words, uint32_t, uint32_t (&to)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = words[i];
    }
    static __device__ __forceinline__ void arrange(const uint32_t* x, uint32_t (&to)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = x[i];
    }
};
template <> struct Codes<e4m3> {
    static constexpr int BITS = 8;
    // A NaN becomes 480: the host sees to it that the scales of its row are NaN.
    static __device__ __forceinline__ void eight(const uint32_t* words, uint32_t, uint32_t (&to)[4]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            to[2 * i] = decode2(bf16(), __byte_perm(words[i], 0, 0x1404));
            to[2 * i + 1] = decode2(bf16(), __byte_perm(words[i], 0, 0x3424));
        }
    }
    static __device__ __forceinline__ void arrange(const uint32_t* x, uint32_t (&to)[4]) {
        Codes<bf16>::arrange(x, to);
    }
};
template <> struct Codes<e2m1> {
    static constexpr int BITS = 4;
    // Codes i and i + 4 are a word. A code's three lower bits, as the end of the exponent and the first of the
    // mantissa, are 2^-126 of its value, the subnormal one too; then comes the scale.
    static __device__ __forceinline__ void eight(const uint32_t* words, uint32_t scale, uint32_t (&to)[4]) {
        const uint32_t sign = 0x80008000u, magnitude = 0x01c001c0u, w = *words;
        to[0] = ((w << 12) & sign) | ((w << 6) & magnitude);
        to[1] = ((w << 8) & sign) | ((w << 2) & magnitude);
        to[2] = ((w << 4) & sign) | ((w >> 2) & magnitude);
        to[3] = (w & sign) | ((w >> 6) & magnitude);
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i] = times2(times2(to[i], 0x7e807e80u), scale);
    }
    static __device__ __forceinline__ void arrange(const uint32_t* x, uint32_t (&to)[4]) {
        to[0] = __byte_perm(x[0], x[2], 0x5410), to[1] = __byte_perm(x[0], x[2], 0x7632);
        to[2] = __byte_perm(x[1], x[3], 0x5410), to[3] = __byte_perm(x[1], x[3], 0x7632);
    }
};

// The words of eight codes.
template <int WORDS> __device__ __forceinline__ void read_codes(const void* from, uint32_t (&to)[WORDS]) {
    if constexpr (WORDS == 1) to[0] = *(const uint32_t*)from;
    else read(from, to);
}

// Adds the products of eight k of each of the four threads of a row.
__device__ __forceinline__ void add_eight(
    float (&sum)[4], const uint32_t (&low)[4], const uint32_t (&high)[4], const uint32_t (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t a[2] = {low[i], low[i + 1]}, b[2] = {high[i], high[i + 1]}, c[2] = {x[i], x[i + 1]};
        multiply<bf16>(sum, a, b, c);
    }
}

// Where the scales of a row of an expert's weight begin.
__device__ __forceinline__ const uint8_t* fp4_scales(const ExpertsParams& p, uint32_t expert, uint32_t row) {
    return (const uint8_t*)p.scales + expert * p.scale_stride + (uint64_t)row * (p.k / 32);
}
__device__ __forceinline__ const float* fp8_scales(const ExpertsParams& p, uint32_t expert, uint32_t row) {
    const uint64_t of = p.scale_rows[expert * p.scale_row_stride + row];
    return (const float*)p.scales + expert * p.scale_stride + of * p.scale_columns;
}
