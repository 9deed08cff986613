// What else is done with a packed FP8 weight (packed.cuh): matmuls with few rows of x of any type, and the weight
// brought back to rows, as codes or as bf16.
//
// ## Method
// 1. Few rows: as matmul_rows.cu, by groups. A thread reads sixteen codes of a row at a time, and trades them with its three
//    neighbours for eight that follow one another, twice, so that it reads x as there.
// 2. Back to rows: a thread takes what it would read there. The four threads of a row's 64 of k give each other words, so
//    that each has sixteen codes that follow one another.
#pragma once
#include "packed.cuh"
#include "../common/words.cuh"

// The twin of `PackedParams` in src/launch/params.rs.
struct PackedParams {
    MatmulParams matmul;
    Packing packing;
};
TWIN_SIZE(PackedParams, 104);
TWIN_FIELD(PackedParams, matmul, 0);
TWIN_FIELD(PackedParams, packing, 88);

// The four lanes of a row, which trade codes of 32 of k: each gets eight that follow one another.
class Neighbours {
    bool upper;
    uint32_t keeps, sends, first, second;  // selectors

public:
    __device__ __forceinline__ explicit Neighbours(uint32_t lane) {
        const bool odd = lane & 1;
        upper = lane & 2;
        keeps = odd ? 0x7531u : 0x6420u, sends = odd ? 0x6420u : 0x7531u;
        const uint32_t low = odd ? 0x1054u : 0x5410u, high = odd ? 0x3276u : 0x7632u;
        first = upper ? high : low, second = upper ? low : high;
    }
    // Of two words, each of 16 of k; `to` has the q-th eight.
    __device__ __forceinline__ void trade(const uint32_t* words, uint32_t (&to)[2]) const {
        const uint32_t own = upper ? words[1] : words[0], other = __shfl_xor_sync(~0u, upper ? words[0] : words[1], 2);
        const uint32_t kept = __byte_perm(own, other, keeps);
        const uint32_t got = __shfl_xor_sync(~0u, __byte_perm(own, other, sends), 1);
        to[0] = __byte_perm(kept, got, first), to[1] = __byte_perm(kept, got, second);
    }
};

// A block's GROUPS and TILES times 8 rows of x. DEPTH units of w, of x too where it is read AHEAD, are
// read before the first is multiplied.
template <typename X, int GROUPS, int TILES, int DEPTH, bool AHEAD>
__device__ __forceinline__ void few_rows(const PackedParams& params) {
    using M = typename Multiplied<X, e4m3>::Type;
    constexpr int X_WORDS = 2 * (int)sizeof(X);  // of 8 elements
    const MatmulParams& p = params.matmul;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const uint32_t group0 = blockIdx.x * GROUPS, t0 = blockIdx.y * TILES * 8, units = p.k / UNIT_K;
    // Beyond the last group or row the last one stands in, and its results are not stored.
    const uint8_t* w[GROUPS];
    uint32_t unit_bytes[GROUPS];
    const float* scales[2 * GROUPS];
    const X* x[TILES];
#pragma unroll
    for (int i = 0; i < GROUPS; ++i) {
        const uint32_t group = min(group0 + i, params.packing.groups - 1);
        const GroupPlace place(params.packing, group, units);
        w[i] = (const uint8_t*)p.w + place.codes + 16 * lane, unit_bytes[i] = place.unit;
        scales[2 * i] = scales_of(p, packed_row(params.packing, group, g));
        scales[2 * i + 1] = scales_of(p, packed_row(params.packing, group, g + 8));
    }
#pragma unroll
    for (int i = 0; i < TILES; ++i) x[i] = (const X*)p.x + min(t0 + 8 * i + g, p.t - 1) * p.x_stride + 8 * q;
    const Neighbours neighbours(lane);

    let_next_start();
    float sum[GROUPS][TILES][4] = {};
    for (uint32_t first = warp; first < units; first += DEPTH * WARPS) {
        uint32_t ws[DEPTH][2 * GROUPS][4] = {}, xs[DEPTH][AHEAD ? TILES : 1][2][X_WORDS] = {};
        float s[DEPTH][2][2 * GROUPS];
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const uint32_t unit = first + d * WARPS;
            if (unit >= units) continue;
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; ++i) {
                read(w[i / 2] + (uint64_t)unit * unit_bytes[i / 2] + i % 2 * (GROUP_CODES / 2), ws[d][i]);
            }
        }
        // The first of w come while the kernel before this one writes x.
        wait_for_last();
        if constexpr (AHEAD) {
#pragma unroll
            for (int d = 0; d < DEPTH; ++d) {
                const uint32_t unit = first + d * WARPS;
                if (unit >= units) continue;
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    read(x[i] + unit * UNIT_K, xs[d][i][0]);
                    read(x[i] + unit * UNIT_K + 32, xs[d][i][1]);
                }
            }
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const uint32_t unit = min(first + d * WARPS, units - 1);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint32_t block = p.by_block.quotient(unit * UNIT_K + 32 * h);
#pragma unroll
                for (int i = 0; i < 2 * GROUPS; ++i) s[d][h][i] = scales[i][block];
            }
        }
#pragma unroll
        for (int d = 0; d < DEPTH; ++d) {
            const uint32_t unit = first + d * WARPS;
            if (unit >= units) break;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                Rows<M, e4m3> a[GROUPS][2];
#pragma unroll
                for (int i = 0; i < GROUPS; ++i) {
                    uint32_t low[2], high[2];
                    neighbours.trade(ws[d][2 * i] + 2 * h, low), neighbours.trade(ws[d][2 * i + 1] + 2 * h, high);
#pragma unroll
                    for (int j = 0; j < 2; ++j) a[i][j] = Rows<M, e4m3>(low + j, high + j);
                }
#pragma unroll
                for (int tile = 0; tile < TILES; ++tile) {
                    uint32_t words[X_WORDS] = {};
                    const uint32_t* from = words;
                    if constexpr (AHEAD) from = xs[d][tile][h];
                    else read(x[tile] + unit * UNIT_K + 32 * h, words);
#pragma unroll
                    for (int i = 0; i < GROUPS; ++i) {
                        float part[4] = {};
                        add<M, X>(part, a[i][0], from);
                        add<M, X>(part, a[i][1], from + sizeof(X));
#pragma unroll
                        for (int c = 0; c < 4; ++c) {
                            sum[i][tile][c] = fmaf(part[c], s[d][h][2 * i + c / 2], sum[i][tile][c]);
                        }
                    }
                }
            }
        }
    }
    use_sums((float(&)[GROUPS * TILES][4])sum, [&](uint32_t i, const float (&of)[4]) {
        const uint32_t group = group0 + i / TILES, t = t0 + i % TILES * 8 + 2 * q;
        if (group >= params.packing.groups) return;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const uint32_t n = packed_row(params.packing, group, g + c / 2 * 8);
            if (t + c % 2 < p.t) store(p, t + c % 2, n, of[c]);
        }
    });
}

// Sixteen codes of a row, from k on.
struct PackedCodes {
    uint4 codes;
    uint32_t row, k;
    bool there;  // the same of a warp

    __device__ __forceinline__ explicit PackedCodes(const PackedParams& params) {
        const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, units = params.matmul.k / UNIT_K;
        const uint32_t lane = i % 32, half = i / 32 % 2, unit = i / 64 % units, group = i / 64 / units;
        there = group < params.packing.groups;
        if (!there) return;
        const GroupPlace place(params.packing, group, units);
        const uint8_t* const from = (const uint8_t*)params.matmul.w + place.codes + (uint64_t)unit * place.unit;
        uint32_t words[4];
        read(from + half * (GROUP_CODES / 2) + lane * 16, words);
        turn_words(words);
        codes.x = __byte_perm(words[0], words[1], 0x6420), codes.y = __byte_perm(words[2], words[3], 0x6420);
        codes.z = __byte_perm(words[0], words[1], 0x7531), codes.w = __byte_perm(words[2], words[3], 0x7531);
        row = packed_row(params.packing, group, half * 8 + lane / 4);
        k = unit * UNIT_K + lane % 4 * 16;
    }
};

__device__ __forceinline__ void unpack(const PackedParams& params) {
    let_next_start();
    const PackedCodes c(params);
    wait_for_last();
    if (!c.there) return;
    uint8_t* const to = (uint8_t*)params.matmul.y + (uint64_t)c.row * params.matmul.k + c.k;
    *(uint4*)to = c.codes;
}

// As decode_e4m3_to_bf16 of matmul.cu.
__device__ __forceinline__ void unpack_to_bf16(const PackedParams& params) {
    const MatmulParams& p = params.matmul;
    let_next_start();
    const PackedCodes c(params);
    Vector<bf16, 8> out[2];
    if (c.there) {
        const e4m3* const codes = (const e4m3*)&c.codes;
        const float s = scales_of(p, c.row)[p.by_block.quotient(c.k)];
#pragma unroll
        for (int j = 0; j < 16; ++j) out[j / 8].x[j % 8] = narrow<bf16>(widen(codes[j]) * s);
    }
    wait_for_last();
    if (!c.there) return;
    bf16* const to = (bf16*)p.y + (uint64_t)c.row * p.k + c.k;
    *(Vector<bf16, 8>*)to = out[0];
    *(Vector<bf16, 8>*)(to + 8) = out[1];
}
