// Matmuls of more tokens than decode steps take, by a packed FP8 weight (packed.cuh), on Hopper's warpgroups.
//
// ## Method
// 1. A tile is STREAMS streams of the weight by up to TOKENS tokens. The BLOCKS of a cluster share its k; where it is
//    one block, that takes one tile after another. Stages of 64 of k come by bulk copies into a ring: one warp asks for
//    x by a tensor map, another for the weights, which need not wait for the kernel before.
// 2. Weights are the 64 rows of a product, in registers; tokens its columns, in shared memory. Codes become
//    bf16 by their bits and one product with a power of two, their scale times 2^120: exact, as every
//    scale is a power of two up to 2^7 and no code a NaN (src/weight.rs asks). So sums are those of all of k.
// 3. Codes lie as wgmma takes them: a lane has two of every eight of k.
// 4. A stage is decoded while the last one is multiplied. Where it has few products its codes are read a stage before.
// 5. Of the blocks that share k each finishes some of the tokens. The others send it their sums, which it adds up in the
//    order of k. bf16 sums pass through shared memory once more, so that a lane has eight following rows of a token: it
//    activates them at once and stores them as one vector, in a short loop. Unrolled, its instructions would have to be
//    fetched. Other results are stored one by one.
#pragma once
#include "warpgroups_stages.cuh"

// A lane's codes of 64 of k, of row g and of row g + 8, and their scales.
struct Codes {
    uint4 low, high;
    float4 scales;
};

// Where a warp has its rows' results of a token, in bf16, in pieces of eight: no two lanes of an access meet in a bank.
__device__ __forceinline__ uint32_t piece_at(uint32_t token, uint32_t half) {
    return token * 32 + (half ^ (token / 4 & 1)) * 16;
}
// The sums of an eight of tokens, as mma leaves them, to their place, rows beside one another.
__device__ __forceinline__ void put_eight(uint32_t area, uint32_t eight, float4 v) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t low = narrow2(bf16(), v.x, v.y), high = narrow2(bf16(), v.z, v.w);
    store_matrices(area + piece_at(8 * eight + lane % 8, lane / 8 & 1), low, high);
}

// Eight gates and ups of a token, activated; what f32 loses is looked for once.
template <Clamp C>
__device__ __forceinline__ void activate_eight(
    const Scalars& s, const uint32_t (&gates)[4], const uint32_t (&ups)[4], uint32_t (&to)[4]) {
    const auto of = [](const uint32_t (&v)[4], int i) {
        return __uint_as_float(i % 2 ? v[i / 2] & 0xffff0000u : v[i / 2] << 16);
    };
    float y[8];
    bool any_lost = false;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        bool lost = false;
        y[i] = gated_or_lost<Silu, C, bf16, false>(of(gates, i), of(ups, i), s, lost);
        any_lost |= lost;
    }
    if (any_lost) {
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] = gated<Silu, C, bf16, false>(of(gates, i), of(ups, i), s);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = narrow2(bf16(), y[2 * i], y[2 * i + 1]);
}

// So many tokens from `token0` on, before `end`, whose sums lie in `area`: a lane stores eight following rows of y at a
// time. A group's first eight rows begin at `row`.
template <bool GATED>
__device__ __forceinline__ void store_vectors(
    const StepParams& p, uint32_t row, uint32_t token0, uint32_t end, const uint8_t* area, uint32_t tokens) {
    constexpr uint32_t PIECES = GATED ? 1 : 2;
    const uint32_t lane = threadIdx.x % 32, half = lane % PIECES;
    bf16* const y = (bf16*)p.y + row + half * p.packing.half_rows;
#pragma unroll 1
    for (uint32_t t = lane / PIECES; t < tokens && token0 + t < end; t += 32 / PIECES) {
        uint32_t v[4];
        read(area + piece_at(t, half), v);
        if constexpr (GATED) {
            uint32_t ups[4], gates[4];
            read(area + piece_at(t, 1), ups);
#pragma unroll
            for (int i = 0; i < 4; ++i) gates[i] = v[i];
            if (p.clamped) activate_eight<Clamp::Before>(p.scalars, gates, ups, v);
            else activate_eight<Clamp::None>(p.scalars, gates, ups, v);
        }
        *(uint4*)(y + (token0 + t) * p.y_stride) = make_uint4(v[0], v[1], v[2], v[3]);
    }
}

// A stream has up to SLOTS groups.
template <int STREAMS_, int SLOTS, int TOKENS, int BLOCKS_, int STAGES_> struct WarpgroupShape {
    static constexpr int STREAMS = STREAMS_, BLOCKS = BLOCKS_, STAGES = STAGES_;
    static constexpr int WARPS = STREAMS * SLOTS;
    static constexpr int X = TOKENS * 2 * UNIT_K, SLOT = HEAD + SLOTS * GROUP_CODES, WEIGHTS = STREAMS * SLOT;
    static constexpr int RING = STAGES * (X + WEIGHTS);
    static constexpr int OWN = TOKENS / 8 / BLOCKS;  // eights of tokens that a block finishes
    // Behind the ring, of a warp: what the other blocks send, or what passes of a tile's sums at a time.
    static constexpr int PASS = BLOCKS > 1 ? OWN : 4, SUMS = (BLOCKS > 1 ? BLOCKS - 1 : 1) * PASS * 512;
    static constexpr int BARRIERS = RING + WARPS * SUMS;
    // Whether codes are read a stage before: of one tile, as they are read beyond its end.
    static constexpr bool AHEAD = TOKENS <= 128 && BLOCKS > 1;
    static_assert(!AHEAD || STAGES > 4, "two stages ahead of the one before");
};

// REGISTERS: of a thread that multiplies, where they are dealt out; else 0.
template <bool GATED, int STREAMS, int SLOTS, int TOKENS, int BLOCKS, int STAGES, int REGISTERS>
__device__ __forceinline__ void warpgroups(const WarpgroupParams& params) {
    using Shape = WarpgroupShape<STREAMS, SLOTS, TOKENS, BLOCKS, STAGES>;
    constexpr int OWN = Shape::OWN;
    static_assert(OWN * BLOCKS * 8 == TOKENS, "parts are whole eights");
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
    // Here, where it is hidden by the wait for data.
    stages.cluster_is_there();
    const uint8_t* const slot = memory + STAGES * Shape::X + warp / SLOTS * Shape::SLOT;
    const uint8_t* const my_scales = slot + warp % SLOTS * 16;
    const uint8_t* const my_codes = slot + HEAD + warp % SLOTS * GROUP_CODES + lane * 16;
    const uint64_t x = describe_rows(base);
    uint32_t stage = 0;
    RingPlace next;  // whose codes are read next
    const auto arrived = [&] { wait_barrier<false>(stages.full(next.stage), next.parity); };
    const auto release = [&](uint32_t stage) {
        if (lane == 0) arrive(stages.empty(stage));
    };
    Codes codes;
    const auto read_codes = [&] {
        const uint8_t* const at = my_codes + next.stage * Shape::WEIGHTS;
        codes.low = *(const uint4*)at, codes.high = *(const uint4*)(at + GROUP_CODES / 2);
        codes.scales = *(const float4*)(my_scales + next.stage * Shape::WEIGHTS);
        next.advance(STAGES);
    };
    const Decoder decoder;
    const auto decode_codes = [&](uint32_t (&to)[16]) { decoder.decode_unit(codes.low, codes.high, codes.scales, to); };
    const uint32_t area = base + Shape::RING + warp * Shape::SUMS;
    float4* const passing = (float4*)(memory + Shape::RING + warp * Shape::SUMS) + lane;
    const bool in_vectors =
        p.y_type == Y_BF16 && !p.eager && ((uintptr_t)p.y & 15) == 0 && p.y_stride % 8 == 0;
    for (uint32_t tile = blockIdx.x / BLOCKS; tile < tiles; tile += gridDim.x / BLOCKS) {
        float sum[TOKENS / 2] = {};
        uint32_t last = 0;
        // The next stage, from `ready`; the one after it is brought to `other`. Behind the last one codes are read that
        // are not used.
        const auto take_turn = [&](uint32_t turn, const uint32_t (&ready)[16], uint32_t (&other)[16]) {
            begin_products();
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                multiply_warpgroup<TOKENS>(sum, ready + 4 * j, x + stage * (Shape::X / 16) + j * 2);
            }
            end_group();
            if constexpr (Shape::AHEAD) {
                // A branch, behind which the compiler leaves what it would else put between the products.
                if (turn + 2 < count) arrived();
            }
            // Of the stage before this one: `other` is free.
            wait_for_groups<1>();
            if (turn > 0) release(last);
            last = stage;
            stage = stage + 1 < STAGES ? stage + 1 : 0;
            if constexpr (Shape::AHEAD) {
                decode_codes(other);
                read_codes();
            } else if (turn + 1 < count) {
                arrived();
                read_codes();
                decode_codes(other);
            }
        };
        uint32_t a[2][16];
        if (count > 0) {
            arrived();
            read_codes();
            decode_codes(a[0]);
            if constexpr (Shape::AHEAD) {
                if (count > 1) arrived();
                read_codes();
            }
            uint32_t turn = 0;
            for (; turn + 1 < count; turn += 2) take_turn(turn, a[0], a[1]), take_turn(turn + 1, a[1], a[0]);
            if (turn < count) take_turn(turn, a[0], a[1]);
            wait_for_groups<0>();
            release(last);
        }
        // No sum is read before.
#pragma unroll
        for (int i = 0; i < TOKENS / 2; ++i) asm volatile("" : "+f"(sum[i]));
        const auto of_eight = [&](int t) {
            return make_float4(sum[4 * t], sum[4 * t + 1], sum[4 * t + 2], sum[4 * t + 3]);
        };
        const uint32_t stream = tile % row_tiles * STREAMS + warp / SLOTS;
        const Stream s(p.packing, min(stream, p.packing.streams - 1), units);
        const bool there = stream < p.packing.streams && warp % SLOTS < s.groups;
        const uint32_t row = packed_row(p.packing, s.first + warp % SLOTS, 0);
        const uint32_t token0 = tile / row_tiles * params.rows;
        const uint32_t end = min(token0 + params.rows, p.t);
        // So many eights of tokens, the first one of them `eight0` of the tile, one result after another.
        const auto store_passing = [&](uint32_t eight0) {
#pragma unroll 1
            for (uint32_t t = 0; t < Shape::PASS; ++t) {
                const uint32_t token = token0 + (eight0 + t) * 8;
                if (!there || token >= end) return;
                const uint32_t of_lane = token + lane % 4 * 2;
                const float4 sums = passing[t * 32];
                if (p.y_type == Y_BF16) store_tokens<GATED, bf16>(p, row + lane / 4, of_lane, sums);
                else if (p.y_type == Y_F16) store_tokens<GATED, f16>(p, row + lane / 4, of_lane, sums);
                else store_tokens<GATED, float>(p, row + lane / 4, of_lane, sums);
            }
        };
        // The same of sums that are in `area`.
        const auto store_area = [&](uint32_t eight0, uint32_t eights) {
            __syncwarp();
            const uint8_t* const from = (const uint8_t*)(passing - lane);
            if (there) store_vectors<GATED>(p, row, token0 + eight0 * 8, end, from, eights * 8);
            __syncwarp();
        };
        if constexpr (BLOCKS == 1) {
            if (in_vectors) {
                constexpr int AT_ONCE = 2 * Shape::PASS;
#pragma unroll 1
                for (uint32_t eight0 = 0; eight0 < TOKENS / 8; eight0 += AT_ONCE) {
#pragma unroll
                    for (int t = 0; t < TOKENS / 8; ++t) {
                        if (t / AT_ONCE * AT_ONCE == eight0) put_eight(area, t % AT_ONCE, of_eight(t));
                    }
                    store_area(eight0, AT_ONCE);
                }
            } else {
#pragma unroll 1
                for (uint32_t eight0 = 0; eight0 < TOKENS / 8; eight0 += Shape::PASS) {
#pragma unroll
                    for (int t = 0; t < TOKENS / 8; ++t) {
                        if (t / Shape::PASS * Shape::PASS == eight0) passing[t % Shape::PASS * 32] = of_eight(t);
                    }
                    store_passing(eight0);
                }
            }
        } else {
#pragma unroll
            for (uint32_t to = 0; to < BLOCKS; ++to) {
                if (to == rank) continue;
                const uint32_t from = rank - (rank > to);
                const uint32_t address = in_block(area + from * OWN * 512 + lane * 16, to), barrier = in_block(stages.sent(), to);
#pragma unroll
                for (int t = 0; t < OWN; ++t) send(address + t * 512, of_eight(to * OWN + t), barrier);
            }
            wait_barrier<false>(stages.sent(), 0);
#pragma unroll
            for (uint32_t own = 0; own < BLOCKS; ++own) {
                if (own != rank) continue;
#pragma unroll
                for (int t = 0; t < OWN; ++t) {
                    float4 v;
#pragma unroll
                    for (uint32_t i = 0; i < BLOCKS; ++i) {
                        const float4 next = i == own ? of_eight(own * OWN + t) : passing[((i - (i > own)) * OWN + t) * 32];
                        if (i == 0) v = next;
                        else v.x += next.x, v.y += next.y, v.z += next.z, v.w += next.w;
                    }
                    // Where sums have been read.
                    if (in_vectors) put_eight(area, t, v);
                    else passing[t * 32] = v;
                }
            }
            if (in_vectors) store_area(rank * OWN, OWN);
            else store_passing(rank * OWN);
        }
    }
}
