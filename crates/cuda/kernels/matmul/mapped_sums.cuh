// What becomes of the sums of mapped.cuh, which the blocks of a cluster have sent each other.
//
// ## Method
// 1. Up to 64 tokens a block owns some of the warps' sums, all parts of k in shared memory. A thread takes following rows of
//    two tokens.
// 2. Of 128 tokens two blocks own a half each. A thread has the sums that it made itself and the same ones of the other
//    block; results meet in shared memory, a token's rows, whence they are stored in vectors.
// 3. Loops are short: what runs once comes from far away, an instruction line after another.
#pragma once
#include "step.cuh"
#include "../common/cluster.cuh"

// The twin of `MappedParams` in src/launch/params.rs.
struct MappedParams {
    TensorMap weight, x;
    StepParams step;       // w and x are the maps'; streams are tiles
    uint32_t tile_groups;  // of a tile, at most a warp's each
    uint32_t parts_log;    // of the parts of k, which are blocks of a cluster, to the base of 2
    uint32_t stages;       // of weights that there is room for,
    uint32_t x_stages;     // and of x, no more
    uint32_t ahead;        // stages not asked for yet when the next kernel may start
    uint16_t first_stage, first_x_stage;  // the places of the first ones: then the last one comes to the last place
    uint32_t gated;
    uint32_t tile_tokens;
};
TWIN_SIZE(MappedParams, 384);
TWIN_FIELD(MappedParams, weight, 0);
TWIN_FIELD(MappedParams, x, 128);
TWIN_FIELD(MappedParams, step, 256);
TWIN_FIELD(MappedParams, tile_groups, 352);
TWIN_FIELD(MappedParams, parts_log, 356);
TWIN_FIELD(MappedParams, stages, 360);
TWIN_FIELD(MappedParams, x_stages, 364);
TWIN_FIELD(MappedParams, ahead, 368);
TWIN_FIELD(MappedParams, first_stage, 372);
TWIN_FIELD(MappedParams, first_x_stage, 374);
TWIN_FIELD(MappedParams, gated, 376);
TWIN_FIELD(MappedParams, tile_tokens, 380);

__device__ constexpr uint32_t log2_of(uint32_t n) { return n > 1 ? 1 + log2_of(n / 2) : 0; }

// So many bytes of a vector of 16.
template <int BYTES> __device__ __forceinline__ void store_bytes(void* to, const uint32_t (&words)[4]) {
    if constexpr (BYTES == 2) *(uint16_t*)to = (uint16_t)words[0];
    else if constexpr (BYTES == 4) *(uint32_t*)to = words[0];
    else if constexpr (BYTES == 8) *(uint2*)to = make_uint2(words[0], words[1]);
    else *(uint4*)to = make_uint4(words[0], words[1], words[2], words[3]);
}

// Adds up a block's part of the sums, in the order of k, and stores or activates them. A thread takes following rows of two
// tokens, whose outputs it stores as a vector.
template <int WARPS, int TOKENS>
__device__ __forceinline__ void store_sums(
    const MappedParams& params, const float4* sums, uint32_t part, uint32_t group0, uint32_t token0) {
    constexpr uint32_t LANE_SUMS = TOKENS / 8, THREADS = 32 * WARPS, ROWS = TOKENS < 32 ? 1 : TOKENS / 16;
    StepParams p = params.step;
    // No token of the next tile.
    p.t = min(p.t, token0 + params.tile_tokens);
    const uint32_t parts = 1 << params.parts_log, piece = THREADS * LANE_SUMS >> params.parts_log;
    const bool aligned = (((uintptr_t)p.y | 2 * p.y_stride) & 2 * ROWS - 1) == 0;
    const bool quick = p.y_type == Y_BF16 && !p.eager && aligned;
    Scalars scalars = p.scalars;
    if (!p.clamped) scalars.limit = __int_as_float(0x7f800000);
    const auto add = [](float4& v, float4 next) { v.x += next.x, v.y += next.y, v.z += next.z, v.w += next.w; };
#pragma unroll 1
    for (uint32_t of = threadIdx.x; of < piece / ROWS; of += THREADS) {
        const uint32_t at = of / (32 / ROWS) * 32 + of / 4 % (8 / ROWS) * (4 * ROWS) + of % 4, o = part * piece + at;
        const uint32_t of_warp = o / 32 / LANE_SUMS, group = group0 + of_warp;
        const uint32_t token = token0 + o / 32 % LANE_SUMS * 8 + o % 4 * 2;
        if (of_warp >= params.tile_groups || group >= p.packing.groups || token >= p.t) continue;
        const uint32_t row = packed_row(p.packing, group, o / 4 % 8);
        // Those that are to be stored one by one: all, or those whose gate's value f32 loses. Two bits for each row.
        uint32_t left = (1 << 2 * ROWS) - 1;
        if (quick) {
            left = 0;
            // Neighbours begin at rows of their own, so that they meet in no bank.
            const uint32_t turned = ROWS > 1 ? of / 4 & 1 : 0;
            float4 v[ROWS];
#pragma unroll
            for (uint32_t j = 0; j < ROWS; ++j) v[j] = sums[at + 4 * (j ^ turned)];
#pragma unroll 1
            for (uint32_t i = 1; i < parts; ++i) {
#pragma unroll
                for (uint32_t j = 0; j < ROWS; ++j) add(v[j], sums[i * piece + at + 4 * (j ^ turned)]);
            }
            if (params.gated) {
#pragma unroll
                for (uint32_t j = 0; j < ROWS; ++j) {
                    bool lost[2] = {};
                    round_pair<bf16>(v[j].x, v[j].y), round_pair<bf16>(v[j].z, v[j].w);
                    v[j].x = gated_or_lost<Silu, Clamp::Before, bf16, false>(v[j].x, v[j].z, scalars, lost[0]);
                    v[j].y = gated_or_lost<Silu, Clamp::Before, bf16, false>(v[j].y, v[j].w, scalars, lost[1]);
                    left |= ((uint32_t)lost[0] | (uint32_t)lost[1] << 1) << 2 * (j ^ turned);
                }
            }
            // Of both tokens, rows g and rows g + 8.
            uint32_t words[4][4];
#pragma unroll
            for (uint32_t j = 0; j < ROWS; j += 2) {
                const float4 a = v[j], b = ROWS > 1 ? v[j + 1] : a;
                const uint32_t order = turned ? 0x1032 : 0x3210;
                words[0][j / 2] = __byte_perm(narrow2(bf16(), a.x, b.x), 0, order);
                words[1][j / 2] = __byte_perm(narrow2(bf16(), a.y, b.y), 0, order);
                words[2][j / 2] = __byte_perm(narrow2(bf16(), a.z, b.z), 0, order);
                words[3][j / 2] = __byte_perm(narrow2(bf16(), a.w, b.w), 0, order);
            }
            bf16* const y = (bf16*)p.y + token * p.y_stride + row;
#pragma unroll
            for (uint32_t i = 0; i < 2; ++i) {
                if (token + i >= p.t) continue;
                store_bytes<2 * ROWS>(y + i * p.y_stride, words[i]);
                if (!params.gated) store_bytes<2 * ROWS>(y + i * p.y_stride + p.packing.half_rows, words[2 + i]);
            }
        }
#pragma unroll 1
        for (; left; left &= left - 1) {
            const uint32_t i = __ffs(left) - 1, j = i / 2;
            float4 v = sums[at + 4 * j];
            for (uint32_t i = 1; i < parts; ++i) add(v, sums[i * piece + at + 4 * j]);
            const float low = i % 2 ? v.y : v.x, high = i % 2 ? v.w : v.z;
            if (p.y_type == Y_BF16) {
                if (params.gated) store_rows<true, bf16>(p, row + j, token + i % 2, low, high);
                else store_rows<false, bf16>(p, row + j, token + i % 2, low, high);
            } else {
                if (params.gated) store_rows<true, float>(p, row + j, token + i % 2, low, high);
                else store_rows<false, float>(p, row + j, token + i % 2, low, high);
            }
        }
    }
}

// All warps that multiply.
template <int WARPS> __device__ __forceinline__ void sync_products() {
    asm volatile("bar.sync 1, %0;" ::"n"(32 * WARPS) : "memory");
}

// The activation where f32 loses a gate's value, which is hardly ever: out of line.
__device__ __noinline__ float activate_wide(float gate, float up, float limit) {
    return gated_wide<Silu, Clamp::Before, bf16>(gate, up, Scalars{limit, -0.0f, 1.0f, 0.0f});
}

// Where the i-th eight of the tokens of a half has its sums, whose two halves lie at places of their own.
struct HalfSums {
    uint8_t *first, *second;
    __device__ __forceinline__ float4 at(uint32_t warp, uint32_t i, uint32_t lane) const {
        return ((const float4*)(i < 4 ? first : second))[(warp * 4 + i % 4) * 32 + lane];
    }
};

// Sends the sums of the other half of 128 tokens, and keeps those of this one. `own` is a lane's place.
template <int WARPS, int HALF>
__device__ __forceinline__ void part_sums(
    const float (&sum)[64], const uint32_t (&to)[2], uint32_t told, HalfSums mine, uint32_t own) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
        const float* const four = sum + 4 * i + (1 - HALF) * 32;
        send(to[i / 4] + (own + i % 4 * 32) * 16, four[0], four[1], four[2], four[3], told);
    }
    // No product reads x any longer.
    sync_products<WARPS>();
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
        const float* const four = sum + 4 * i + HALF * 32;
        ((float4*)(i < 4 ? mine.first : mine.second))[own + i % 4 * 32] = make_float4(four[0], four[1], four[2], four[3]);
    }
}

// Sums of 128 tokens, of which each of two blocks adds up and stores a half: `mine` are this block's own, `theirs` the
// other's. Results meet in shared memory, a token's rows, whence threads store vectors.
template <int WARPS>
__device__ __forceinline__ void store_half(
    const MappedParams& params, HalfSums mine, HalfSums theirs, uint8_t* results, uint32_t group0, uint32_t token0,
    uint32_t tokens) {
    const StepParams& p = params.step;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, gated = params.gated;
    const bool aligned = (((uintptr_t)p.y | 2 * p.y_stride) & 15) == 0;
    Scalars scalars = p.scalars;
    if (!p.clamped) scalars.limit = __int_as_float(0x7f800000);
    const auto total = [&](uint32_t i) {
        float4 v = mine.at(warp, i, lane);
        const float4 next = theirs.at(warp, i, lane);
        v.x += next.x, v.y += next.y, v.z += next.z, v.w += next.w;
        return v;
    };
    if (p.y_type != Y_BF16 || p.eager || !aligned) {
        const uint32_t group = group0 + warp, row = packed_row(p.packing, group, lane / 4);
        if (warp >= params.tile_groups || group >= p.packing.groups) return;
#pragma unroll 1
        for (uint32_t i = 0; i < 16; ++i) {
            const float4 v = total(i / 2);
            const uint32_t token = i / 2 * 8 + lane % 4 * 2 + i % 2;
            if (token >= tokens) continue;
            const float low = i % 2 ? v.y : v.x, high = i % 2 ? v.w : v.z;
            if (p.y_type == Y_BF16) {
                if (gated) store_rows<true, bf16>(p, row, token0 + token, low, high);
                else store_rows<false, bf16>(p, row, token0 + token, low, high);
            } else {
                if (gated) store_rows<true, float>(p, row, token0 + token, low, high);
                else store_rows<false, float>(p, row, token0 + token, low, high);
            }
        }
        return;
    }
    // Of a token's rows, 16 bytes each: where eight tokens begin in one bank they are turned.
    const uint32_t pieces_log = log2_of(WARPS) + 1 - gated, pieces = 1 << pieces_log;
    const auto place = [&](uint32_t token, uint32_t piece) {
        const uint32_t turn = pieces_log == 2 ? token / 2 % 4 : token % 8;
        return (token * pieces + (piece ^ turn)) * 16;
    };
    const uint32_t to = shared_address(results);
#pragma unroll 1
    for (uint32_t i = 0; i < 8; i += 2) {
        float4 v[2] = {total(i), total(i + 1)};
        if (gated) {
            bool lost = false;
            float y[4];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                round_pair<bf16>(v[j].x, v[j].y), round_pair<bf16>(v[j].z, v[j].w);
                y[2 * j] = gated_or_lost<Silu, Clamp::Before, bf16, false>(v[j].x, v[j].z, scalars, lost);
                y[2 * j + 1] = gated_or_lost<Silu, Clamp::Before, bf16, false>(v[j].y, v[j].w, scalars, lost);
            }
            if (lost) {
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    y[2 * j] = activate_wide(v[j].x, v[j].z, scalars.limit);
                    y[2 * j + 1] = activate_wide(v[j].y, v[j].w, scalars.limit);
                }
            }
            store_matrices(to + place(i * 8 + lane % 16, warp), narrow2(bf16(), y[0], y[1]), narrow2(bf16(), y[2], y[3]));
        } else {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                store_matrices(to + place((i + j) * 8 + lane % 8, 2 * warp + lane / 8 % 2),
                    narrow2(bf16(), v[j].x, v[j].y), narrow2(bf16(), v[j].z, v[j].w));
            }
        }
    }
    sync_products<WARPS>();
#pragma unroll 2
    for (uint32_t v = threadIdx.x; v < 64 * pieces; v += 32 * WARPS) {
        const uint32_t token = v >> pieces_log, piece = v & pieces - 1, of_warp = gated ? piece : piece / 2;
        const uint32_t group = group0 + of_warp;
        if (token >= tokens || of_warp >= params.tile_groups || group >= p.packing.groups) continue;
        const uint32_t row = packed_row(p.packing, group, gated ? 0 : piece % 2 * 8);
        *(uint4*)((bf16*)p.y + (token0 + token) * p.y_stride + row) = *(const uint4*)(results + place(token, piece));
    }
}
