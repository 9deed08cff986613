// The kernels of up to 64 tokens, as those of warpgroups.cuh but for two things: SETS of warpgroups take the stages in turns,
// where one of them would wait for its own decoding, and sums are stored as words of two rows.
#pragma once
#include "warpgroups.cuh"

namespace turns {
// Eight rows of eight of 16 bits, of which a lane has two of a row: turned, two of a column.
__device__ __forceinline__ uint32_t turned(uint32_t v) {
    uint32_t r;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}

// Activated sums of row g and of row g + 8, `low` and `high`, of two tokens each: those of several eights at once, so
// that they do not wait for one another, and what f32 loses is looked for once.
template <Clamp C, typename T, int N>
__device__ __forceinline__ void activate_all(const StepParams& p, const float4 (&v)[N], float2 (&y)[N]) {
    bool any_lost = false;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        bool lost[2] = {};
        y[i].x = gated_or_lost<Silu, C, T, false>(rounded<T>(v[i].x), rounded<T>(v[i].z), p.scalars, lost[0]);
        y[i].y = gated_or_lost<Silu, C, T, false>(rounded<T>(v[i].y), rounded<T>(v[i].w), p.scalars, lost[1]);
        any_lost |= lost[0] | lost[1];
    }
    if (!any_lost) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        y[i].x = gated<Silu, C, T, false>(rounded<T>(v[i].x), rounded<T>(v[i].z), p.scalars);
        y[i].y = gated<Silu, C, T, false>(rounded<T>(v[i].y), rounded<T>(v[i].w), p.scalars);
    }
}

// The sums of 16 rows and of tokens up to `end`, as mma leaves them, by all lanes of a warp: two rows of y are one store.
template <bool GATED, typename T, int N>
__device__ __forceinline__ void store_words(
    const StepParams& p, uint32_t row, uint32_t token0, uint32_t end, const float4 (&v)[N]) {
    const uint32_t g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    float2 y[N];
    if constexpr (GATED) {
        if (p.clamped) activate_all<Clamp::Before, T>(p, v, y);
        else activate_all<Clamp::None, T>(p, v, y);
        __syncwarp();
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const uint32_t token = token0 + 8 * i + g;
        T* const to = (T*)p.y + token * p.y_stride + row + 2 * q;
        if constexpr (GATED) {
            const uint32_t word = turned(narrow2(T(), y[i].x, y[i].y));
            if (token < end) *(uint32_t*)to = word;
        } else {
            const uint32_t low = turned(narrow2(T(), v[i].x, v[i].y)), high = turned(narrow2(T(), v[i].z, v[i].w));
            if (token < end) *(uint32_t*)to = low, *(uint32_t*)(to + p.packing.half_rows) = high;
        }
    }
}

// A stream has up to SLOTS groups.
template <int STREAMS_, int SLOTS, int TOKENS, int BLOCKS_, int SETS, int STAGES_> struct WarpgroupShape {
    static constexpr int STREAMS = STREAMS_, BLOCKS = BLOCKS_, STAGES = STAGES_;
    static constexpr int ROW_WARPS = STREAMS * SLOTS, WARPS = ROW_WARPS * SETS;
    static constexpr int X = TOKENS * 2 * UNIT_K, SLOT = HEAD + SLOTS * GROUP_CODES, WEIGHTS = STREAMS * SLOT;
    static constexpr int RING = STAGES * (X + WEIGHTS);
    static constexpr int PARTS = BLOCKS * SETS, OWN = TOKENS / 8 / PARTS;  // eights of tokens that a part finishes
    // Behind the ring, of a warp: what the other parts send, or what passes of a tile's sums at a time.
    static constexpr int PASS = PARTS > 1 ? OWN : 4, SUMS = (PARTS > 1 ? PARTS - 1 : 1) * PASS * 512;
    static constexpr int BARRIERS = RING + WARPS * SUMS;
};

// REGISTERS: of a thread that multiplies, where they are dealt out; else 0.
template <bool GATED, int STREAMS, int SLOTS, int TOKENS, int BLOCKS, int SETS, int STAGES, int REGISTERS>
__device__ __forceinline__ void warpgroups(const WarpgroupParams& params) {
    using Shape = WarpgroupShape<STREAMS, SLOTS, TOKENS, BLOCKS, SETS, STAGES>;
    constexpr int PARTS = Shape::PARTS, OWN = Shape::OWN;
    static_assert(SETS <= STAGES && OWN * PARTS * 8 == TOKENS, "stages are there, and parts are whole eights");
    // The swizzle is one of addresses.
    extern __shared__ __align__(1024) uint8_t memory[];
    let_next_start();
    const StepParams& p = params.step;
    const uint32_t base = shared_address(memory);
    const WarpgroupStages<Shape> stages(params, base);
    // The compiler is to see that it is one of a warp.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t units = p.k / UNIT_K, rank = stages.rank, count = stages.count;
    const uint32_t row_tiles = stages.row_tiles, tiles = stages.tiles;
    stages.init_barriers();
    if (warp >= Shape::WARPS) {
        if constexpr (REGISTERS > 0) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        stages.copy(params, warp);
        return;
    }
    if constexpr (REGISTERS > 0) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
    const uint32_t set = warp / Shape::ROW_WARPS, row_warp = warp % Shape::ROW_WARPS;
    const uint8_t* const slot = memory + STAGES * Shape::X + row_warp / SLOTS * Shape::SLOT;
    const uint8_t* const my_scales = slot + row_warp % SLOTS * 16;
    const uint8_t* const my_codes = slot + HEAD + row_warp % SLOTS * GROUP_CODES + lane * 16;
    const auto decode = [&](uint32_t stage, uint32_t (&a)[16]) {
        const float4 scales = *(const float4*)(my_scales + stage * Shape::WEIGHTS);
        const uint8_t* const codes = my_codes + stage * Shape::WEIGHTS;
        const uint4 low = *(const uint4*)codes, high = *(const uint4*)(codes + GROUP_CODES / 2);
        decode_unit(low, high, scales, a);
    };
    // By named barriers of a warpgroup and the one before it.
    constexpr uint32_t WARPGROUPS = Shape::WARPS / 4;
    const auto wait_turn = [&] {
        if constexpr (SETS > 1) asm volatile("bar.sync %0, 256;" ::"r"(1 + warp / 4) : "memory");
    };
    const auto pass_turn = [&] {
        if constexpr (SETS > 1) asm volatile("bar.arrive %0, 256;" ::"r"(1 + (warp / 4 + 1) % WARPGROUPS) : "memory");
    };
    if (warp / 4 == WARPGROUPS - 1) pass_turn();
    const uint64_t x = describe_rows(base);
    RingPlace at{set};
    const auto arrived = [&] { wait_barrier<false>(stages.full(at.stage), at.parity); };
    const auto release = [&](uint32_t stage) {
        if (lane == 0) arrive(stages.empty(stage));
    };
    const uint32_t turns = count > set ? (count - set + SETS - 1) / SETS : 0;
    float4* const passing = (float4*)(memory + Shape::RING + warp * Shape::SUMS) + lane;
    const bool in_words = ((uintptr_t)p.y & 3) == 0 && p.y_stride % 2 == 0 && !p.eager;
    for (uint32_t tile = blockIdx.x / BLOCKS; tile < tiles; tile += gridDim.x / BLOCKS) {
        float sum[TOKENS / 2] = {};
        uint32_t last = 0;
        // The set's next stage, from `ready`; the one after it is brought to `other`.
        const auto take_turn = [&](uint32_t turn, const uint32_t (&ready)[16], uint32_t (&other)[16]) {
            wait_turn();
            begin_products();
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                multiply_warpgroup<TOKENS>(sum, ready + 4 * j, x + at.stage * (Shape::X / 16) + j * 2);
            }
            end_group();
            pass_turn();
            const uint32_t before = last;
            last = at.stage;
            at.advance(STAGES, SETS);
            // Of the stage before this one: `other` is free.
            wait_for_groups<1>();
            if (turn > 0) release(before);
            if (turn + 1 < turns) {
                arrived();
                decode(at.stage, other);
            }
        };
        uint32_t a[2][16];
        if (turns > 0) {
            arrived();
            decode(at.stage, a[0]);
            uint32_t turn = 0;
            for (; turn + 1 < turns; turn += 2) take_turn(turn, a[0], a[1]), take_turn(turn + 1, a[1], a[0]);
            if (turn < turns) take_turn(turn, a[0], a[1]);
            wait_for_groups<0>();
            release(last);
        }
        // No sum is read before.
#pragma unroll
        for (int i = 0; i < TOKENS / 2; ++i) asm volatile("" : "+f"(sum[i]));
        const auto of_eight = [&](int t) {
            return make_float4(sum[4 * t], sum[4 * t + 1], sum[4 * t + 2], sum[4 * t + 3]);
        };
        const uint32_t stream = tile % row_tiles * STREAMS + row_warp / SLOTS;
        const Stream s(p.packing, min(stream, p.packing.streams - 1), units);
        const bool there = stream < p.packing.streams && row_warp % SLOTS < s.groups;
        const uint32_t row = packed_row(p.packing, s.first + row_warp % SLOTS, 0);
        const uint32_t token0 = tile / row_tiles * params.rows;
        const uint32_t end = min(token0 + params.rows, p.t);
        // So many eights of tokens, the first one of them `eight0` of the tile.
        const auto store_passing = [&](uint32_t eight0) {
            constexpr int AT_ONCE = Shape::PASS < 4 ? Shape::PASS : 4;
            if (!there) return;
#pragma unroll 1
            for (uint32_t t = 0; t < Shape::PASS; t += AT_ONCE) {
                const uint32_t token = token0 + (eight0 + t) * 8;
                if (token >= end) return;
                float4 v[AT_ONCE];
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) v[i] = passing[(t + i) * 32];
                if (in_words && p.y_type == Y_BF16) {
                    store_words<GATED, bf16>(p, row, token, end, v);
                } else if (in_words && p.y_type == Y_F16) {
                    store_words<GATED, f16>(p, row, token, end, v);
                } else {
#pragma unroll 1
                    for (uint32_t i = 0; i < AT_ONCE && token + 8 * i < end; ++i) {
                        const uint32_t of_lane = token + 8 * i + lane % 4 * 2;
                        const float4 sums = passing[(t + i) * 32];
                        if (p.y_type == Y_BF16) store_tokens<GATED, bf16>(p, row + lane / 4, of_lane, sums);
                        else if (p.y_type == Y_F16) store_tokens<GATED, f16>(p, row + lane / 4, of_lane, sums);
                        else store_tokens<GATED, float>(p, row + lane / 4, of_lane, sums);
                    }
                }
            }
        };
        if constexpr (PARTS == 1) {
#pragma unroll 1
            for (uint32_t eight0 = 0; eight0 < TOKENS / 8; eight0 += Shape::PASS) {
#pragma unroll
                for (int t = 0; t < TOKENS / 8; ++t) {
                    if (t / Shape::PASS * Shape::PASS == eight0) passing[t % Shape::PASS * 32] = of_eight(t);
                }
                store_passing(eight0);
            }
        } else {
            const uint32_t part = rank * SETS + set;
            stages.cluster_is_there();
#pragma unroll
            for (uint32_t to = 0; to < PARTS; ++to) {
                if (to == part) continue;
                const uint32_t of_warp = to % SETS * Shape::ROW_WARPS + row_warp, from = part - (part > to);
                const uint32_t place = Shape::RING + of_warp * Shape::SUMS + from * OWN * 512 + lane * 16;
                const uint32_t address = in_block(base + place, to / SETS), barrier = in_block(stages.sent(), to / SETS);
#pragma unroll
                for (int t = 0; t < OWN; ++t) send(address + t * 512, of_eight(to * OWN + t), barrier);
            }
            wait_barrier<true>(stages.sent(), 0);
#pragma unroll
            for (uint32_t own = 0; own < PARTS; ++own) {
                if (own != part) continue;
#pragma unroll
                for (int t = 0; t < OWN; ++t) {
                    float4 v;
#pragma unroll
                    for (uint32_t i = 0; i < PARTS; ++i) {
                        const float4 next = i == own ? of_eight(own * OWN + t) : passing[((i - (i > own)) * OWN + t) * 32];
                        if (i == 0) v = next;
                        else v.x += next.x, v.y += next.y, v.z += next.z, v.w += next.w;
                    }
                    passing[t * 32] = v;
                }
            }
            store_passing(part * OWN);
        }
    }
}
}  // namespace turns
