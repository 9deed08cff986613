// Matmuls of few tokens by a packed FP8 weight (packed.cuh), as fast as it is read: decode steps on Hopper.
//
// ## Method
// 1. A cluster of two blocks has a stream, and at most TOKENS of the tokens; its warps share k, each with
//    units of its own, which follow one another in memory.
// 2. A warp asks for its units by bulk copies into a ring that no other warp touches, before the wait
//    for the kernel before. It asks for the next one when one has arrived: asked for all at once, they
//    keep that wait from ending.
// 3. After the wait it reads x, of several tokens through shared memory, as rows of 128 bytes and then as fragments. Each
//    token's 64 of k become f16 by a power of two that takes their largest magnitude to [2^15, 2^16): exact from 2^-32 of
//    it on, off by at most 2^-40 of it below (docs/numerics.md has the bound).
// 4. Weights are the 16 rows of the tensor cores' product, tokens its 8 columns. A unit's sum is multiplied by
//    the weight's scales, then by the inverse power, and added in f32.
// 5. A kernel that quantizes makes codes of each token's 128 following k first, as quantize.cu does, all 128 in one
//    warp; codes are exact in f16, and the inverse power is their scale. So sums are, to the bit, those of codes
//    widened to bf16.
// 6. Warps leave their sums where their rings were, and the block adds them in the warps' order. The
//    blocks send each other the half that is the other's. Then rows are stored, or activated first.
#pragma once
#include "step.cuh"
#include "../common/cluster.cuh"
#include "../common/fp8.cuh"

constexpr int BLOCKS = 2;  // of a cluster

// Four codes as two words of f16; a NaN is a NaN.
__device__ __forceinline__ void widen_codes(uint32_t codes, uint32_t (&words)[2]) {
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, b;}"
        : "=r"(words[0]), "=r"(words[1]) : "r"(codes));
}
// A lane has bf16s of k and k + 1 in the one word and of k + 8 and k + 9 in the other, where a word of codes
// (packed.cuh) has them in the order k, k + 8, k + 1, k + 9. As two words of f16 in this order, times a power of two.
__device__ __forceinline__ uint2 scaled(uint32_t low, uint32_t high, float power) {
    const __half2 first = __floats2half2_rn(__uint_as_float(low << 16) * power, __uint_as_float(high << 16) * power);
    const __half2 second = __floats2half2_rn(
        __uint_as_float(low & 0xffff0000u) * power, __uint_as_float(high & 0xffff0000u) * power);
    return make_uint2(*(const uint32_t*)&first, *(const uint32_t*)&second);
}

// The power of two that takes bf16s of at most this magnitude, given by its bits, to [2^15, 2^16), and its
// inverse: at most 2^126, for inverses to be normal, and what it takes to finite f16s beside an infinity.
struct Power {
    float up, down;
    __device__ __forceinline__ explicit Power(uint32_t top) {
        const uint32_t e = min(max(top >> 7, 16u), 254u);
        up = __uint_as_float((269u - e) << 23), down = __uint_as_float((e - 15u) << 23);
    }
};

// A group's codes: what numbers are multiplied by, and the scale, both powers of two.
struct Codes {
    float inverse, scale;
    // Of numbers of at most this magnitude, given by its bits as bf16.
    __device__ __forceinline__ Codes(uint32_t top, float floor) {
        const uint32_t byte = power_of_two_scale(max(top << 16, __float_as_uint(floor)));
        inverse = inverse_power(byte), scale = power(byte);
    }
    // In the order of a word of the weight's.
    __device__ __forceinline__ uint32_t operator()(uint32_t low, uint32_t high) const {
        const float x[4] = {
            __uint_as_float(low << 16) * inverse, __uint_as_float(high << 16) * inverse,
            __uint_as_float(low & 0xffff0000u) * inverse, __uint_as_float(high & 0xffff0000u) * inverse};
        return encode4(x);
    }
};

__device__ __forceinline__ uint32_t larger_magnitudes(uint4 v) {
    const uint32_t m = 0x7fff7fffu;
    return __vmaxu2(__vmaxu2(v.x & m, v.y & m), __vmaxu2(v.z & m, v.w & m));
}
__device__ __forceinline__ uint32_t larger_magnitudes(const uint32_t (&v)[8]) {
    return __vmaxu2(larger_magnitudes(make_uint4(v[0], v[1], v[2], v[3])),
        larger_magnitudes(make_uint4(v[4], v[5], v[6], v[7])));
}
__device__ __forceinline__ uint32_t with_lane(uint32_t top, int distance) {
    return __vmaxu2(top, __shfl_xor_sync(~0u, top, distance));
}
// Tokens' 64 of k in shared memory, 128 bytes a row, whose pieces are swizzled.
__device__ __forceinline__ uint32_t piece_of(uint32_t row, uint32_t piece) { return row * 128 + (piece ^ row % 8) * 16; }
// Of four pieces, whose rows' places lanes have by eights: a lane's word of its row's.
__device__ __forceinline__ void read_matrices(uint32_t place, uint32_t* to) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(place) : "memory");
}
__device__ __forceinline__ uint32_t larger_half(uint32_t top) { return max(top >> 16, top & 0xffffu); }

// A stream of GROUPS at most; TOKENS: one, whose x a warp converts together, or tiles of 8. A
// warp's ring holds RING units. AHEAD units of x are read at once. QUANTIZES x, whose least amax is `floor`.
template <bool GATED, int GROUPS, int TOKENS, int RING, int AHEAD, bool QUANTIZES = false>
__device__ __forceinline__ void decode(const StepParams& p, float floor = 0.0f) {
    constexpr bool ONE = TOKENS == 1;
    static_assert(!QUANTIZES || ONE || AHEAD == 2, "a group is two units");
    constexpr int THREADS = 32 * WARPS, TILES = (TOKENS + 7) / 8, PAIRS = GROUPS * TILES;
    constexpr int OWNED = (PAIRS + 1) / BLOCKS;  // pairs of a group and a tile that a block finishes
    constexpr int SLOT = HEAD + GROUPS * GROUP_CODES;
    constexpr int LANES = ONE ? 8 : 32;  // that have a token's sums: of one, those of column 0
    static_assert(RING * SLOT >= PAIRS * LANES * 16, "a warp's sums take the place of its ring");
    extern __shared__ __align__(128) uint8_t memory[];
    __shared__ __align__(8) uint64_t full[WARPS][RING], sums;
    // Of units: the words of four products of each lane of a row.
    __shared__ __align__(16) uint2 one_x[ONE ? WARPS : 1][ONE ? AHEAD : 1][16];
    __shared__ float one_power[ONE ? WARPS : 1][ONE ? AHEAD : 1];

    if (!p.next_late) let_next_start();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int rank = blockIdx.x % BLOCKS, units = p.k / UNIT_K, piece = rank * WARPS + warp;
    const int first = piece * units / (BLOCKS * WARPS);
    const int count = (piece + 1) * units / (BLOCKS * WARPS) - first;
    const uint32_t token0 = blockIdx.y * TOKENS;
    const Stream stream(p.packing, blockIdx.x / BLOCKS, units);
    const uint8_t* const mine = p.w + stream.offset + (uint64_t)first * stream.unit;
    uint8_t* const ring = memory + warp * RING * SLOT;
    const auto fetch = [&](int unit) {
        const int place = unit % RING;
        const uint32_t barrier = shared_address(&full[warp][place]);
        expect_bytes(barrier, stream.unit);
        bulk_copy(shared_address(ring + place * SLOT), mine + (uint64_t)unit * stream.unit, stream.unit, barrier);
    };
    const auto arrived = [&](int unit) {
        wait_barrier<false>(shared_address(&full[warp][unit % RING]), unit / RING & 1);
    };
    const int in_ring = min(RING, count);
    if (lane == 0) {
        for (int i = 0; i < RING; ++i) init_barrier(shared_address(&full[warp][i]));
        if (warp == 0) init_barrier(shared_address(&sums));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        if (count > 0) fetch(0);
        if (warp == 0) {
            const int owned = min(OWNED, PAIRS - rank * OWNED);
            expect_bytes(shared_address(&sums), owned * LANES * 16);
        }
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    if (lane == 0) {
        for (int i = 1; i < in_ring; ++i) {
            arrived(i - 1);
            fetch(i);
        }
    }
    __syncwarp();
    wait_for_last();
    if (p.next_late) let_next_start();

    constexpr int STEP = ONE ? 2 : 1;  // of a lane's four sums one token needs the first and the third
    float sum[GROUPS][TILES][4] = {};
    // Of several tokens: asks for a unit of x, for one of AHEAD places.
    const uint32_t staged = shared_address(memory) + WARPS * RING * SLOT + OWNED * LANES * 16 + warp * (AHEAD * TILES * 1024);
    const auto ask_for_x = [&](int unit, int place) {
        const bf16* const x = p.x + (first + unit) * UNIT_K + lane % 8 * 8;
#pragma unroll
        for (int i = 0; i < TILES * 2; ++i) {
            const uint32_t row = i * 4 + lane / 8, token = token0 + row;
            const uint64_t from = min(token, p.t - 1) * p.x_stride;
            copy16(staged + place * (TILES * 1024) + piece_of(row, lane % 8), x + from, token < p.t ? 16 : 0);
        }
        end_copies();
    };
    // Of a tile's tokens and each eight of k the word that a lane has codes of.
    const auto read_x = [&](int place, int tile, uint32_t(&to)[8]) {
        const uint32_t row = tile * 8 + lane % 8;
        read_matrices(staged + place * (TILES * 1024) + piece_of(row, lane / 8), to);
        read_matrices(staged + place * (TILES * 1024) + piece_of(row, 4 + lane / 8), to + 4);
    };
    // Of the two tokens that a lane has sums of; x as words of f16.
    const auto multiply_unit = [&](int unit, const uint32_t(&x)[TILES][8], const float2(&down)[TILES]) {
        arrived(unit);
        const uint8_t* const slot = ring + unit % RING * SLOT;
#pragma unroll
        for (int i = 0; i < GROUPS; ++i) {
            // Of groups that the stream has not, anything: it is not stored.
            const float4 scale = ((const float4*)slot)[i];
            const uint4* const codes = (const uint4*)(slot + HEAD + i * GROUP_CODES) + lane;
            const uint4 lo = codes[0], hi = codes[32];
            uint32_t low[4][2], high[4][2];  // of rows g and g + 8
            widen_codes(lo.x, low[0]), widen_codes(lo.y, low[1]);
            widen_codes(lo.z, low[2]), widen_codes(lo.w, low[3]);
            widen_codes(hi.x, high[0]), widen_codes(hi.y, high[1]);
            widen_codes(hi.z, high[2]), widen_codes(hi.w, high[3]);
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                float u[4] = {}, v[4] = {};  // k below 32, and from 32 on
                const auto add = [&](float(&to)[4], int j) {
                    const uint32_t b[2] = {x[t][2 * j], x[t][2 * j + 1]};
                    multiply<f16>(to, low[j], high[j], b);
                };
                add(u, 0), add(v, 2), add(u, 1), add(v, 3);
#pragma unroll
                for (int e = 0; e < 4; e += STEP) {
                    const float s0 = e < 2 ? scale.x : scale.y, s1 = e < 2 ? scale.z : scale.w;
                    const float both = fmaf(v[e], s1, u[e] * s0);
                    sum[i][t][e] = fmaf(both, e % 2 ? down[t].y : down[t].x, sum[i][t][e]);
                }
            }
        }
        if (unit + RING < count) {
            __syncwarp();
            if (lane == 0) fetch(unit + RING);
        }
    };
    // Groups begin at even units, so that a warp reads the other one's x too of those that it has half of.
    const int begin0 = QUANTIZES ? -(first & 1) : 0, end = QUANTIZES ? count + ((first + count) & 1) : count;
    if constexpr (ONE) {
        for (int begin = begin0; begin < end; begin += AHEAD) {
            constexpr int LOADS = (AHEAD + 3) / 4;
            // Of 16 of k one lane has what two lanes will read, and the next one the rest.
            const uint2* const x = (const uint2*)(p.x + token0 * p.x_stride + (first + begin) * UNIT_K);
            const int there = min(AHEAD, end - begin) * 8;
            uint4 v[LOADS];
#pragma unroll
            for (int d = 0; d < LOADS; ++d) {
                const int at = d * 32 + lane, from = at / 2 * 4 + at % 2;
                const uint2 none = make_uint2(0, 0);
                const uint2 low = at < there ? __ldcg(x + from) : none, high = at < there ? __ldcg(x + from + 2) : none;
                v[d] = make_uint4(low.x, low.y, high.x, high.y);
            }
            __syncwarp();
#pragma unroll
            for (int d = 0; d < LOADS; ++d) {
                const uint32_t of_unit = with_lane(with_lane(with_lane(larger_magnitudes(v[d]), 1), 2), 4);
                const int at = d * 32 + lane;
                uint2 words[2];
                float down;
                if constexpr (QUANTIZES) {
                    const Codes codes(larger_half(with_lane(of_unit, 8)), floor);
                    uint32_t w[2][2];
                    widen_codes(codes(v[d].x, v[d].z), w[0]), widen_codes(codes(v[d].y, v[d].w), w[1]);
                    words[0] = make_uint2(w[0][0], w[0][1]), words[1] = make_uint2(w[1][0], w[1][1]);
                    down = codes.scale;
                } else {
                    const Power power(larger_half(of_unit));
                    words[0] = scaled(v[d].x, v[d].z, power.up), words[1] = scaled(v[d].y, v[d].w, power.up);
                    down = power.down;
                }
                if (at < AHEAD * 8) {
                    uint2* const to = one_x[warp][at / 8] + at % 2 * 8 + at % 8 / 2;
                    to[0] = words[0], to[4] = words[1];
                    if (lane % 8 == 0) one_power[warp][at / 8] = down;
                }
            }
            __syncwarp();
#pragma unroll
            for (int d = 0; d < AHEAD; ++d) {
                const int unit = begin + d;
                if (unit >= count) break;
                if (QUANTIZES && unit < 0) continue;
                uint32_t x[1][8];
                read(one_x[warp][d] + 4 * q, x[0]);
                const float2 down[1] = {{one_power[warp][d], 0.0f}};
                multiply_unit(unit, x, down);
            }
        }
    } else if constexpr (QUANTIZES) {
        const auto ask_for_group = [&](int unit) { ask_for_x(unit, 0), ask_for_x(unit + 1, 1); };
        if (begin0 < end) ask_for_group(begin0);
        for (int begin = begin0; begin < end; begin += 2) {
            uint32_t codes[2][TILES][4];
            float2 down[TILES];
            wait_for_copies<0>();
            __syncwarp();
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                uint32_t words[2][8];
                read_x(0, t, words[0]), read_x(1, t, words[1]);
                const uint32_t of_lane = __vmaxu2(larger_magnitudes(words[0]), larger_magnitudes(words[1]));
                const Codes of(larger_half(with_lane(with_lane(of_lane, 1), 2)), floor);
#pragma unroll
                for (int i = 0; i < 8; ++i) codes[i / 4][t][i % 4] = of(words[i / 4][i % 4 * 2], words[i / 4][i % 4 * 2 + 1]);
                down[t].x = __shfl_sync(~0u, of.scale, q * 8);
                down[t].y = __shfl_sync(~0u, of.scale, q * 8 + 4);
            }
            __syncwarp();
            if (begin + 2 < end) ask_for_group(begin + 2);
#pragma unroll
            for (int d = 0; d < 2; ++d) {
                const int unit = begin + d;
                if (unit < 0 || unit >= count) continue;
                uint32_t x[TILES][8];
#pragma unroll
                for (int i = 0; i < TILES * 4; ++i) {
                    widen_codes(codes[d][i / 4][i % 4], *(uint32_t(*)[2])&x[i / 4][i % 4 * 2]);
                }
                multiply_unit(unit, x, down);
            }
        }
    } else {
        if (count > 0) {
#pragma unroll
            for (int d = 0; d < AHEAD; ++d) ask_for_x(min(d, count - 1), d);
        }
        for (int begin = 0; begin < count; begin += AHEAD) {
#pragma unroll
            for (int d = 0; d < AHEAD; ++d) {
                const int unit = begin + d;
                if (unit >= count) break;
                uint32_t x[TILES][8];
                float2 down[TILES];
                wait_for_copies<AHEAD - 1>();
                __syncwarp();
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    read_x(d, t, x[t]);
                    const Power power(larger_half(with_lane(with_lane(larger_magnitudes(x[t]), 1), 2)));
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const uint2 words = scaled(x[t][2 * j], x[t][2 * j + 1], power.up);
                        x[t][2 * j] = words.x, x[t][2 * j + 1] = words.y;
                    }
                    down[t].x = __shfl_sync(~0u, power.down, q * 8);
                    down[t].y = __shfl_sync(~0u, power.down, q * 8 + 4);
                }
                __syncwarp();
                if (unit + AHEAD < count) ask_for_x(unit + AHEAD, d);
                else end_copies();
                multiply_unit(unit, x, down);
            }
        }
    }

    __syncwarp();
    if (!ONE || q == 0) {
#pragma unroll
        for (int i = 0; i < PAIRS; ++i) {
            const float(&of)[4] = sum[i / TILES][i % TILES];
            ((float4*)ring)[i * LANES + (ONE ? g : lane)] = make_float4(of[0], of[1], of[2], of[3]);
        }
    }
    __syncthreads();
    const auto total = [&](int at) {
        float4 v = ((const float4*)memory)[at];
#pragma unroll
        for (uint32_t w = 1; w < WARPS; ++w) {
            const float4 o = ((const float4*)(memory + w * RING * SLOT))[at];
            v.x += o.x, v.y += o.y, v.z += o.z, v.w += o.w;
        }
        return v;
    };
    float4* const received = (float4*)(memory + WARPS * RING * SLOT);
    // The other block's barrier is there.
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    const int other = (rank ^ 1) * OWNED, theirs = min(OWNED, PAIRS - other);
    const uint32_t there = in_block(shared_address(received), rank ^ 1);
    const uint32_t barrier = in_block(shared_address(&sums), rank ^ 1);
    for (int o = threadIdx.x; o < theirs * LANES; o += THREADS) {
        send(there + o * 16, total(other * LANES + o), barrier);
    }
    const int own = rank * OWNED, owned = min(OWNED, PAIRS - own);
    // The threads that have sent the least go first.
    for (int o = threadIdx.x ^ (THREADS / 2); o < owned * LANES; o += THREADS) {
        float4 v = total(own * LANES + o);
        wait_barrier<true>(shared_address(&sums), 0);
        const float4 r = received[o];
        v.x += r.x, v.y += r.y, v.z += r.z, v.w += r.w;
        const uint32_t pair = own + o / LANES, of_lane = o % LANES, i = pair / TILES;
        if (i >= stream.groups) continue;
        const uint32_t row = packed_row(p.packing, stream.first + i, ONE ? of_lane : of_lane / 4);
        const uint32_t token = token0 + pair % TILES * 8 + (ONE ? 0 : of_lane % 4 * 2);
        if (p.y_type == Y_BF16) store_tokens<GATED, bf16>(p, row, token, v);
        else if (p.y_type == Y_F16) store_tokens<GATED, f16>(p, row, token, v);
        else store_tokens<GATED, float>(p, row, token, v);
    }
    // No block leaves while the other may still send to it.
    if (threadIdx.x == 0) wait_barrier<true>(shared_address(&sums), 0);
}
