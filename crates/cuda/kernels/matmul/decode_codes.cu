// The kernels for few tokens that quantize x as they read it, by packed FP8 weights, for Hopper: decode.cuh.
#include "decode.cuh"

#if __CUDA_ARCH__ == 900
// The twin of `QuantizingParams` in src/launch/params.rs.
struct QuantizingParams {
    StepParams step;
    float floor;  // the least amax of a group
};
TWIN_SIZE(QuantizingParams, 104);
TWIN_FIELD(QuantizingParams, step, 0);
TWIN_FIELD(QuantizingParams, floor, 96);

// Kernels are named quantizing_<kind>_<groups>_groups_<tokens>_tokens, as those of decode.cu.
constexpr bool gated_kind = true, plain_kind = false;
#define KERNEL(KIND, GROUPS, TOKENS, RING, AHEAD, BLOCKS_OF_SM)                                       \
    extern "C" __global__ void __cluster_dims__(BLOCKS) __launch_bounds__(32 * WARPS, BLOCKS_OF_SM)    \
    quantizing_##KIND##_##GROUPS##_groups_##TOKENS##_tokens(const __grid_constant__ QuantizingParams p) { \
        decode<KIND##_kind, GROUPS, TOKENS, RING, AHEAD, true>(p.step, p.floor);                       \
    }

// The twin of `WidenCodesParams` in src/launch/params.rs.
struct WidenCodesParams {
    const bf16* x;
    bf16* to;            // rows without gaps
    uint64_t x_stride;   // elements
    uint32_t groups;     // in all
    uint32_t row_groups; // of a row
    Divisor by_row;      // by row_groups
    float floor;
};
TWIN_SIZE(WidenCodesParams, 48);
TWIN_FIELD(WidenCodesParams, x, 0);
TWIN_FIELD(WidenCodesParams, to, 8);
TWIN_FIELD(WidenCodesParams, x_stride, 16);
TWIN_FIELD(WidenCodesParams, groups, 24);
TWIN_FIELD(WidenCodesParams, row_groups, 28);
TWIN_FIELD(WidenCodesParams, by_row, 32);
TWIN_FIELD(WidenCodesParams, floor, 40);

// x as its codes are, widened, for matmuls of more tokens. Sixteen threads have a group.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
widen_codes(const __grid_constant__ WidenCodesParams p) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, of_group = i % 16, group = min(i / 16, p.groups - 1);
    const uint32_t row = p.by_row.quotient(group), column = (group - row * p.row_groups) * 128 + of_group * 8;
    begin();
    const uint4 v = __ldcg((const uint4*)(p.x + row * p.x_stride + column));
    uint32_t top = larger_magnitudes(v);
#pragma unroll
    for (int distance = 1; distance < 16; distance *= 2) top = with_lane(top, distance);
    const Codes codes(larger_half(top), p.floor);
    // Of two words of x, to their place.
    const auto widened = [&](uint32_t low, uint32_t high) {
        uint32_t w[2];
        widen_codes(codes(low, high), w);
        const float2 first = __half22float2(*(const __half2*)&w[0]), second = __half22float2(*(const __half2*)&w[1]);
        const float scale = codes.scale;
        return make_uint2(narrow2(bf16(), first.x * scale, second.x * scale), narrow2(bf16(), first.y * scale, second.y * scale));
    };
    const uint2 low = widened(v.x, v.y), high = widened(v.z, v.w);
    if (i / 16 >= p.groups) return;
    const uint64_t to = (uint64_t)row * p.row_groups * 128 + column;
    *(uint4*)(p.to + to) = make_uint4(low.x, low.y, high.x, high.y);
}

// src/matmul/step.rs has this table.
KERNEL(gated, 4, 1, 3, 4, 2)
KERNEL(gated, 4, 8, 3, 2, 2)
KERNEL(gated, 4, 16, 2, 2, 2)
KERNEL(gated, 6, 1, 3, 8, 1)
KERNEL(gated, 6, 8, 2, 2, 1)
KERNEL(gated, 6, 16, 2, 2, 1)
KERNEL(plain, 4, 1, 2, 2, 2)
KERNEL(plain, 4, 8, 2, 2, 2)
KERNEL(plain, 4, 16, 2, 2, 2)
KERNEL(plain, 7, 1, 2, 4, 1)
KERNEL(plain, 7, 8, 2, 2, 1)
KERNEL(plain, 7, 16, 2, 2, 1)
#endif
