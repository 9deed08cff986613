// The tiles of code_tiles.cuh for more tokens: 192 or 256 of them by 128 rows of the weight.
//
// ## Method
// 1. What a multiprocessor gets from the L2 and what its shared memory takes decide. A tile of 256 tokens has 1152 cycles of
//    shared memory a stage, copies and operands, where the tensor cores need 1024; of 128 tokens it would be 640 for 512.
// 2. The two blocks of a cluster have the same tokens: each brings half of them, to both.
// 3. A warpgroup has PARTS products of 64 tokens, one after another; while it adds up one's sums others multiply.
// 4. A lane has the scale of a token of its warp, the next ones on their way: a table would be waited for at the start.
// 5. Results go from registers to memory: a thread's activations, their largest magnitude and their codes need no other
//    thread but the three that have the rest of its tokens' eights.
#pragma once
#include "code_tiles.cuh"
#include "../common/words.cuh"

// The shape of a block of 192 or 256 tokens.
template <int TOKENS_, int STAGES> struct LargeCodeTilesShape {
    static constexpr int TOKENS = TOKENS_, ROWS = 128, PARTS = TOKENS == 256 ? 2 : 1, WARPS = TOKENS / PARTS / 16;
    // Of a thread that multiplies. One that copies keeps 24: all are what a multiprocessor has.
    static constexpr int REGISTERS = PARTS == 2 ? 240 : 160;
    static constexpr int X = TOKENS * CODES_K, W = ROWS * CODES_K;
    static constexpr int BARRIERS = STAGES * (X + W), LARGEST = BARRIERS + 16 * STAGES + 16, SCALES = LARGEST + TOKENS * 4;
};

// What is hardly ever needed is out of line.
__device__ __noinline__ void activate_wide(float (&y)[16], const float (&gate)[16], const float (&up)[16], const Scalars& s) {
#pragma unroll 1
    for (int i = 0; i < 16; ++i) y[i] = gated_wide<Silu, Clamp::Before, bf16>(gate[i], up[i], s);
}
// A lane's sixteen activations of a token, as pairs of bf16: of columns 2q and 2q + 1 of each eight. `h`: of token g or of
// g + 8. Eights of gates and of ups take turns in `sum`. Without a clamp the limit is infinite.
__device__ __forceinline__ void activate_token(const Scalars& s, const float (&sum)[64], int h, uint32_t (&to)[8]) {
    float gate[16], up[16], y[16];
    bool lost = false;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const int at = i / 2 * 8 + 2 * h + i % 2;
        gate[i] = rounded<bf16>(sum[at]), up[i] = rounded<bf16>(sum[at + 4]);
        y[i] = gated_or_lost<Silu, Clamp::Before, bf16, false>(gate[i], up[i], s, lost);
    }
    if (lost) {
        // Through local memory, and only here.
        float all[16], gates[16], ups[16];
#pragma unroll
        for (int i = 0; i < 16; ++i) gates[i] = gate[i], ups[i] = up[i];
        activate_wide(all, gates, ups, s);
#pragma unroll
        for (int i = 0; i < 16; ++i) y[i] = all[i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = narrow2(bf16(), y[2 * i], y[2 * i + 1]);
}

// Sixteen codes of a token, of columns from 16q on: four lanes have traded theirs.
__device__ __forceinline__ uint4 codes_of(const uint32_t (&act)[8], float inverse) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t a = act[2 * i], b = act[2 * i + 1], upper = 0xffff0000u;
        const float y[4] = {__uint_as_float(a << 16) * inverse, __uint_as_float(a & upper) * inverse,
            __uint_as_float(b << 16) * inverse, __uint_as_float(b & upper) * inverse};
        words[i] = encode4(y);
    }
    turn_words(words);
    return make_uint4(__byte_perm(words[0], words[1], 0x5410), __byte_perm(words[2], words[3], 0x5410),
        __byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632));
}

// The results of a gate and its up half, of a warp's tokens: of each part's from `of_warp` and 64 further on.
template <int PARTS>
__device__ __forceinline__ void store_activated(const CodeTilesParams& params, float (&sum)[PARTS][64],
    const uint32_t* theirs, uint32_t token0, uint32_t of_warp, uint32_t tokens, uint32_t compared) {
    const CodesParams& p = params.codes;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, rank = blockIdx.x % 2, other = 1 - rank;
    // Else rows of codes begin at multiples of four bytes.
    const bool whole = ((uintptr_t)p.y | p.y_stride) % 16 == 0;
    uint32_t act[PARTS][2][8], top[PARTS][2];
    const auto activate = [&](float (&of)[64], uint32_t (&act)[2][8], uint32_t (&top)[2], uint32_t token) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            activate_token(params.scalars, of, h, act[h]);
            uint32_t both = 0;
#pragma unroll
            for (int i = 0; i < 8; ++i) both = __vmaxu2(both, act[h][i] & 0x7fff7fffu);
            uint32_t most = max(both << 16, both & 0xffff0000u);
            most = max(most, __shfl_xor_sync(~0u, most, 1));
            most = max(most, __shfl_xor_sync(~0u, most, 2));
            if (q == 0) send(in_block(shared_address(theirs + token + 8 * h), other), most, in_block(compared, other));
            top[h] = most;
        }
    };
#pragma unroll
    for (int part = 0; part < PARTS; ++part) activate(sum[part], act[part], top[part], of_warp + part * 64 + g);
    wait_barrier<false>(compared, 0);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t token = of_warp + part * 64 + 8 * h + g;
            // As an integer a NaN is larger than any number.
            const uint32_t byte = power_of_two_scale(max(max(top[part][h], theirs[token]), __float_as_uint(params.floor)));
            const uint4 codes = codes_of(act[part][h], inverse_power(byte));
            if (token >= tokens) continue;
            uint32_t* const to = (uint32_t*)((uint8_t*)p.y + (token0 + token) * p.y_stride + blockIdx.x * 64 + 16 * q);
            if (whole) *(uint4*)to = codes;
            else to[0] = codes.x, to[1] = codes.y, to[2] = codes.z, to[3] = codes.w;
            if (q != 0 || rank != 0) continue;
            const uint32_t group = blockIdx.x / 2, words = 1u << params.y_word_log;
            uint8_t* scale = (uint8_t*)params.y_scales + (token0 + token) * params.y_scale_row
                + (group >> params.y_word_log) * params.y_scale_word + (group & (words - 1));
            *scale = (uint8_t)byte;
            // A word is filled up with zeros after the last group.
            if ((group + 1) * 128 >= p.n / 2) {
#pragma unroll 1
                for (uint32_t g = group + 1; g % words != 0; ++g) *++scale = 0;
            }
        }
    }
}

// The sums of a warp's tokens, in 16 bits: a lane stores eight that follow one another. n is a multiple of eight.
template <typename T, int PARTS>
__device__ __forceinline__ void store_tokens(
    const CodesParams& p, const float (&sum)[PARTS][64], uint32_t token0, uint32_t of_warp, uint32_t tokens) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint32_t token = of_warp + part * 64 + 8 * h + g;
            T* const y = (T*)p.y + (token0 + token) * p.y_stride;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const uint32_t row = blockIdx.x * 128 + 32 * i;
                if constexpr (sizeof(T) == 4) {
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const float* const from = sum[part] + 16 * i + 4 * j + 2 * h;
                        const uint32_t n = row + 8 * j + 2 * q;
                        if (token >= tokens || n >= p.n) continue;
                        *(float2*)(y + n) = make_float2(narrow<float>(from[0]), narrow<float>(from[1]));
                    }
                } else {
                    uint32_t words[4];
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const float* const from = sum[part] + 16 * i + 4 * j + 2 * h;
                        words[j] = narrow2(T(), from[0], from[1]);
                    }
                    turn_words(words);
                    const uint32_t n = row + 8 * q;
                    if (token < tokens && n < p.n) *(uint4*)(y + n) = make_uint4(words[0], words[1], words[2], words[3]);
                }
            }
        }
    }
}

// The scales of a token, one stage of k after another. Those of a warp's tokens that lie in rows are a sector each, for which
// shared memory is as busy as with a line: so where bytes may be read four at a time, they are.
struct ScalesOfToken {
    const void* of_token;
    uint32_t units;
    bool words;
    uint32_t now, ahead;  // scales or words of them

    __device__ __forceinline__ ScalesOfToken(const CodesParams& p, uint32_t token, uint32_t units) : units(units) {
        of_token = (const uint8_t*)p.x_scales + token * p.scale_row * (p.power_of_two ? 1 : 4);
        const bool follow = p.word_log == 2 || (p.scale_word == 1 && units % 4 == 0);
        words = p.power_of_two && follow && (((uintptr_t)p.x_scales | p.scale_row) & 3) == 0;
    }
    __device__ __forceinline__ void read(const CodesParams& p, uint32_t unit) {
        const uint64_t at = (unit >> p.word_log) * p.scale_word + (unit & ((1u << p.word_log) - 1));
        if (!p.power_of_two) ahead = ((const uint32_t*)of_token)[at];
        else if (words) ahead = *(const uint32_t*)((const uint8_t*)of_token + at);
        else ahead = ((const uint8_t*)of_token)[at];
    }
    __device__ __forceinline__ float next(const CodesParams& p, uint32_t unit) {
        if (!words || unit % 4 == 0) {
            now = ahead;
            const uint32_t following = unit + (words ? 4 : 1);
            if (following < units) read(p, following);
        }
        const float scale = p.power_of_two ? power(now & 255) : __uint_as_float(now);
        now >>= 8;
        return scale;
    }
};

// BEFORE: stages whose weights are asked for before the wait.
template <int TOKENS, int STAGES, int BEFORE>
__device__ __forceinline__ void multiply_large_code_tiles(const CodeTilesParams& params) {
    using Shape = LargeCodeTilesShape<TOKENS, STAGES>;
    constexpr int THREADS = 32 * Shape::WARPS, N = Shape::ROWS, PARTS = Shape::PARTS;
    static_assert(BEFORE < STAGES);
    // The swizzle is one of addresses.
    extern __shared__ __align__(1024) uint8_t memory[];
    let_next_start();
    const CodesParams& p = params.codes;
    const uint32_t base = shared_address(memory), weights = base + STAGES * Shape::X;
    const auto full = [&](uint32_t stage) { return base + Shape::BARRIERS + stage * 8; };
    const auto empty = [&](uint32_t stage) { return full(STAGES + stage); };
    const uint32_t compared = full(2 * STAGES);
    // The compiler is to see that it is one of a warp.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t units = (p.k + CODES_K - 1) / CODES_K, row0 = blockIdx.x * Shape::ROWS, token0 = blockIdx.y * TOKENS;
    // Of each stage of k: the gate's and the up half's.
    float2* const of_weight = (float2*)(memory + Shape::SCALES);
    if (threadIdx.x == THREADS) {
#pragma unroll 1
        for (uint32_t i = 0; i < STAGES; ++i) {
            init_barrier(full(i));
            // Both blocks copy to a stage: both are told.
            init_barrier(empty(i), 2 * Shape::WARPS);
        }
        init_barrier(compared);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        expect_bytes(compared, TOKENS * 4);
    }
    if (warp >= Shape::WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        __syncwarp();
        // Barriers are there, also of the other block.
        meet_cluster();
        if (threadIdx.x == THREADS) {
            const uint32_t half = blockIdx.x % 2 * (TOKENS / 2);
            const auto fetch_weights = [&](uint32_t unit, uint32_t stage) {
                const uint32_t to = weights + stage * Shape::W;
                expect_bytes(full(stage), Shape::X + Shape::W);
                if (params.gated) copy_code_groups(to, p.w, unit * CODES_K, row0 / 16, full(stage));
                else tensor_copy(to, p.w, unit * CODES_K, row0, full(stage));
            };
            const auto fetch_x = [&](uint32_t unit, uint32_t stage) {
                const uint32_t to = base + stage * Shape::X + half * CODES_K;
                tensor_copy_to_blocks(to, p.x, unit * CODES_K, token0 + half, full(stage), 3);
            };
            const uint32_t before = min((uint32_t)BEFORE, units);
#pragma unroll 1
            for (uint32_t u = 0; u < before; ++u) fetch_weights(u, u);
            wait_for_last();
#pragma unroll 1
            for (uint32_t u = 0; u < before; ++u) fetch_x(u, u);
            // The first round has nothing to wait for: the phase before the first one has ended.
            RingPlace at{before, 1};
            for (uint32_t u = before; u < units; ++u, at.advance(STAGES)) {
                wait_barrier<false>(empty(at.stage), at.parity);
                fetch_weights(u, at.stage), fetch_x(u, at.stage);
            }
        }
        __syncwarp();
        meet_cluster();
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::REGISTERS));
    const auto sync_block = [] { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); };
    const uint32_t first_row = params.gated ? row0 / 2 : row0, last_row = (params.gated ? p.n / 2 : p.n) - 1;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < units; i += THREADS) {
        // The second block of a cluster may have no rows.
        const float* const from = p.w_scales + min(first_row, last_row) / 128 * p.scale_columns + i;
        of_weight[i] = make_float2(from[0], from[params.up_scales]);
    }
    meet_cluster();
    sync_block();
    // The first token of a warp's part; the next part's is 64 further.
    const uint32_t of_warp = warp / 4 * (64 * PARTS) + warp % 4 * 16, g = lane / 4, q = lane % 4;
    const uint32_t of_lane = of_warp + lane / 16 % PARTS * 64 + lane % 16;
    ScalesOfToken scales(p, min(token0 + of_lane, p.t - 1), units);
    wait_for_last();
    const uint64_t x = describe_rows(base + of_warp / 64 * (64 * CODES_K)), w = describe_rows(weights);
    scales.read(p, 0);
    float sum[PARTS][N / 2] = {};
    RingPlace at;
    for (uint32_t unit = 0; unit < units; ++unit) {
        wait_barrier<false>(full(at.stage), at.parity);
        float of_x;
        float2 by;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            float product[N / 2];
            begin_products();
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                multiply_codes_warpgroup<N>(product, x + at.stage * (Shape::X / 16) + part * (64 * CODES_K / 16) + j * 2,
                    w + at.stage * (Shape::W / 16) + j * 2, j > 0);
            }
            end_group();
            if (part == 0) {
                of_x = scales.next(p, unit), by = of_weight[unit];
            }
            const float low = __shfl_sync(~0u, of_x, part * 16 + g), high = __shfl_sync(~0u, of_x, part * 16 + g + 8);
            // Eights of a gate's rows and of its up half's take turns.
            const float scale[2][2] = {{low * by.x, high * by.x}, {low * by.y, high * by.y}};
            wait_for_groups<0>();
            if (part + 1 == PARTS && lane < 2) arrive_in_block(in_block(empty(at.stage), lane));
#pragma unroll
            for (int t = 0; t < N / 8; ++t) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    sum[part][4 * t + e] = fmaf(product[4 * t + e], scale[t % 2][e / 2], sum[part][4 * t + e]);
                }
            }
        }
        at.advance(STAGES);
    }
    const uint32_t tokens = min((uint32_t)TOKENS, p.t - token0);
    if (params.gated) {
        const uint32_t* const theirs = (const uint32_t*)(memory + Shape::LARGEST);
        store_activated(params, sum, theirs, token0, of_warp, tokens, compared);
    } else if (p.y_type == Y_F32) {
        store_tokens<float>(p, sum, token0, of_warp, tokens);
    } else if (p.y_type == Y_F16) {
        store_tokens<f16>(p, sum, token0, of_warp, tokens);
    } else {
        store_tokens<bf16>(p, sum, token0, of_warp, tokens);
    }
    // No block leaves while the other may still send to it.
    __syncwarp();
    meet_cluster();
}
