// Matmuls of routed experts in FP4 with few rows each, as fast as their weights are read; and what packs them.
//
// ## Method
// 1. A warp takes a group of 16 rows of an expert's weight (packed.cuh) and a tile of 8 or 16 rows of x, and all of k;
//    two warps share k where one token leaves half of the warps without a group.
// 2. It asks for its groups by bulk copies into a ring that no other warp touches, two units at a time, and for those
//    of its next item before it has multiplied this one's: memory does not wait for an epilogue.
// 3. Codes become bf16 in registers: bits to their places, then one multiplication by the scale, which has the factor
//    that is missing. An expert with a scale beyond 2 takes two.
// 4. Weights are the 16 rows of the tensor cores' product, rows of x its 8 columns. Rows of x come from the L1, a
//    quarter of the next unit's as soon as this one's has been multiplied; of a tile with fewer rows nothing is read
//    for the others. The warps of a block work on one expert, for few rows to be in the L1 together.
// 5. What limits it are instruction slots: 138 a unit of 2048 codes, and copies and lookups for two units at once.
//    Three warps for each scheduler use half of the slots, six four fifths: hence 24 of 80 registers.
//
// ## Order of launches
// A kernel here waits for the one before it, and then lets the next one start. So whatever is launched behind the first
// half begins when the routes, which were written before the first half, are complete, and needs no wait to read them:
// the second half (`sorted_before`) finds its first items and asks for their weights, which no kernel writes, while
// the first half runs. act is written by that, and is read behind the wait; so is all that a quantization between them
// reads. The kernel of sums likewise reads rows ahead behind a second half that waits first, and the first half looks up its
// items behind a shared expert's step that waits first.
#include "experts.cuh"
#include "packed.cuh"
#if __CUDA_ARCH__ == 900
#include "../common/async.cuh"
#endif

// The twin of `PackParams` in src/launch/params.rs.
struct PackParams {
    const uint8_t* codes;   // [rows, k / 2], of the gate and then of the up half
    const uint8_t* scales;  // [rows, k / 32]
    uint8_t* to;
    uint8_t* mark;          // of this expert
    uint32_t rows, k;
    uint32_t half_rows;     // from a group's first row to its ninth: 8, or the rows of the gate
    uint32_t group_rows;    // from a group's first row to the next one's: 16, or 8
};
TWIN_SIZE(PackParams, 48);
TWIN_FIELD(PackParams, codes, 0);
TWIN_FIELD(PackParams, scales, 8);
TWIN_FIELD(PackParams, to, 16);
TWIN_FIELD(PackParams, mark, 24);
TWIN_FIELD(PackParams, rows, 32);
TWIN_FIELD(PackParams, k, 36);
TWIN_FIELD(PackParams, half_rows, 40);
TWIN_FIELD(PackParams, group_rows, 44);

// A warp packs a unit: a lane two words of each eight rows, and the scales of a row and half.
extern "C" __global__ void __launch_bounds__(256)
pack_e2m1(const __grid_constant__ PackParams p) {
    const uint32_t units = p.k / PACKED_K, lane = threadIdx.x % 32;
    const uint32_t all = p.rows / PACKED_ROWS * units;
    for (uint32_t item = blockIdx.x * 8 + threadIdx.x / 32; item < all; item += gridDim.x * 8) {
        const uint32_t group = item / units, k0 = item % units * PACKED_K;
        uint8_t* const to = p.to + (uint64_t)item * PACKED_UNIT;
        const uint32_t first = group * p.group_rows;
        for (uint32_t r = 0; r < PACKED_ROWS; ++r) {
            const uint32_t row = first + r % 8 + (r >= 8 ? p.half_rows : 0);
            if (lane < PACKED_K / 8) {
                const uint64_t at = (uint64_t)row * (p.k / 2) + (k0 + 8 * lane) / 2;
                *(uint32_t*)(to + packed_word(r, 8 * lane)) = pack_codes(*(const uint32_t*)(p.codes + at));
            } else if (lane < PACKED_K / 8 + PACKED_K / 32) {
                const uint32_t k = (lane - PACKED_K / 8) * 32;
                const uint32_t scale = p.scales[(uint64_t)row * (p.k / 32) + (k0 + k) / 32];
                to[packed_scale(r, k)] = (uint8_t)(scale + PACKED_BIAS);
                if (scale > PACKED_MOST) *p.mark = 1;
            }
        }
    }
}

#if __CUDA_ARCH__ == 900

// The items of a warp, one turn after another. In a whole turn following items are a block's: its warps have the same
// rows of x, which the L1 gives them. Those of the last turn go to different blocks, which shares them out evenly.
struct Turns {
    uint32_t items;
    uint32_t warp, warps;  // of a block; a pair of warps counts as one

    __device__ __forceinline__ uint32_t item(uint32_t turn) const {
        const uint32_t first = turn * warps * gridDim.x;
        const bool whole = first + warps * gridDim.x <= items;
        return first + (whole ? blockIdx.x * warps + warp : warp * gridDim.x + blockIdx.x);
    }
};

// A warp's ring of SLOTS copies of UNITS units, and what it asks for next.
template <uint32_t ROWS, uint32_t SLOTS, uint32_t UNITS_OF_SLOT> struct Ring {
    static constexpr uint32_t UNITS = UNITS_OF_SLOT, SLOT = UNITS * PACKED_UNIT, BYTES = SLOTS * SLOT;
    const uint8_t* memory;
    uint32_t barriers;            // one for each slot
    uint32_t first, units;        // of a group's, those that are this warp's
    uint32_t turn = 0, left = 0;  // bytes of a group
    const uint8_t* at = nullptr;
    uint32_t taken = 0, phase = 0;

    __device__ __forceinline__ void ask(const ExpertsParams& p, const uint32_t* ends, const Turns& turns, uint32_t slot) {
        if (left == 0) {
            const uint32_t item = turns.item(turn);
            if (item >= turns.items) return;
            const uint32_t of = p.by_pieces.quotient(item), group = item - of * p.pieces;
            left = units * PACKED_UNIT;
            at = p.w + ExpertTile::expert_of(p, ends, of) * p.w_stride
                + ((uint64_t)group * (p.k / PACKED_K) + first) * PACKED_UNIT;
            ++turn;
        }
        const uint32_t bytes = min(left, SLOT);
        if (threadIdx.x % 32 == 0) {
            expect_bytes(barriers + 8 * slot, bytes);
            bulk_copy(shared_address(memory) + slot * SLOT, at, bytes, barriers + 8 * slot);
        }
        at += bytes, left -= bytes;
    }
    // The units that came next.
    __device__ __forceinline__ const uint8_t* take() const {
        wait_barrier<false>(barriers + 8 * taken, phase);
        return memory + taken * SLOT;
    }
    // They have been multiplied, and others may take their place.
    __device__ __forceinline__ void give_back(const ExpertsParams& p, const uint32_t* ends, const Turns& turns) {
        __syncwarp();
        ask(p, ends, turns, taken);
        taken = taken + 1 == SLOTS ? 0 : taken + 1;
        phase ^= taken == 0;
    }
};

// A lane's x of a unit: of TILES rows four times eight numbers.
template <int TILES> using UnitOfX = uint32_t[TILES][4][4];

// Adds the products of a unit, and reads the next one's x, a quarter as soon as this one's has been multiplied.
// MARKED: a scale may be beyond what one multiplication takes.
template <int TILES, bool MARKED, typename F>
__device__ __forceinline__ void add_unit(
    float (&sum)[2][TILES][4], const uint8_t* unit, UnitOfX<TILES>& x, const F& read_next) {
    const uint32_t lane = threadIdx.x % 32;
    uint32_t low[4], high[4];
    read(unit + lane * 16, low);
    read(unit + PACKED_CODES / 2 + lane * 16, high);
    const uint2 scales = *(const uint2*)(unit + PACKED_CODES + 8 * (lane / 4));
    // The multipliers of two groups of 32 in a word.
    uint32_t of_low[2], of_high[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
        of_low[i] = __byte_perm(scales.x, 0, i ? 0x3424 : 0x1404) >> 1;
        of_high[i] = __byte_perm(scales.y, 0, i ? 0x3424 : 0x1404) >> 1;
    }
#pragma unroll
    for (uint32_t s = 0; s < 4; ++s) {
        uint32_t a[4], b[4];
        widen_packed(low[s], a), widen_packed(high[s], b);
        if constexpr (MARKED) {
            const uint32_t most = 0x7e807e80u;
            const uint32_t to_low = power2((scales.x >> 8 * s) - PACKED_BIAS & 255);
            const uint32_t to_high = power2((scales.y >> 8 * s) - PACKED_BIAS & 255);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                a[j] = times2(times2(a[j], most), to_low), b[j] = times2(times2(b[j], most), to_high);
            }
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                a[j] = times_half(a[j], of_low[s / 2], s % 2), b[j] = times_half(b[j], of_high[s / 2], s % 2);
            }
        }
        // Two sums take turns, as a product waits for the one before it.
#pragma unroll
        for (int i = 0; i < TILES; ++i)
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                const uint32_t l[2] = {a[j], a[j + 1]}, h[2] = {b[j], b[j + 1]}, c[2] = {x[i][s][j], x[i][s][j + 1]};
                multiply<bf16>(sum[j / 2][i], l, h, c);
            }
        read_next(s);
    }
}

// What a warp has to know of an item. Its loads are asked for an item ahead.
template <int TILES> struct Item {
    ExpertTile tile;
    uint32_t group;
    int32_t route[TILES];  // of this lane's rows; the second half's: the rows themselves
    uint8_t marked;

    template <bool GATED>
    __device__ __forceinline__ void find(
        const ExpertsParams& p, const uint32_t* ends, const uint32_t* begins, uint32_t item) {
        const uint32_t of = p.by_pieces.quotient(item);
        group = item - of * p.pieces;
        tile = ExpertTile::find<8 * TILES>(p, ends, begins, of);
        marked = ((const uint8_t*)p.scales)[tile.expert];
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            const uint32_t row = tile.row + min(8 * i + threadIdx.x % 32 / 4, tile.rows - 1);
            route[i] = GATED ? __ldcg(p.sorted + row) : (int32_t)row;
        }
    }
};

// The sums of a pair's first half of k are added to the second's. Returns whether this warp has them.
template <uint32_t WARPS_OF_BLOCK>
__device__ __forceinline__ bool add_other_half(float (&sum)[2][1][4], uint32_t part) {
    __shared__ float4 of_first[WARPS_OF_BLOCK / 2][32];
    const uint32_t pair = threadIdx.x / 64;
    float4& place = of_first[pair][threadIdx.x % 32];
    float(&own)[4] = sum[0][0];
#pragma unroll
    for (int i = 0; i < 4; ++i) own[i] += sum[1][0][i], sum[1][0][i] = 0.0f;
    const auto meet = [&] { asm volatile("bar.sync %0, 64;" ::"r"(1 + pair) : "memory"); };
    if (!part) place = make_float4(own[0], own[1], own[2], own[3]);
    meet();
    const float4 first = place;
    meet();
    own[0] += first.x, own[1] += first.y, own[2] += first.z, own[3] += first.w;
    return part;
}

// Adds the products of all units of an item. `there` becomes false as rows end.
template <int TILES, bool MARKED, typename Ring>
__device__ __forceinline__ void multiply_item(const ExpertsParams& p, const uint32_t* ends, const Turns& turns,
    Ring& ring, const bf16* (&x)[TILES], bool (&there)[TILES], UnitOfX<TILES>& of_unit, float (&sum)[2][TILES][4]) {
    for (uint32_t left = ring.units; left > 0;) {
        const uint8_t* at = ring.take();
#pragma unroll 1
        for (uint32_t end = left - min(left, Ring::UNITS); left > end; at += PACKED_UNIT) {
            --left;
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                there[i] = there[i] && left > 0;
                x[i] += PACKED_K;
            }
            add_unit<TILES, MARKED>(sum, at, of_unit, [&](uint32_t s) {
#pragma unroll
                for (int i = 0; i < TILES; ++i) {
                    if (there[i]) read(x[i] + 32 * s, of_unit[i][s]);
                }
            });
        }
        ring.give_back(p, ends, turns);
    }
}

// TILES times 8 rows of x.
template <bool GATED, int TILES, uint32_t PARTS, uint32_t WARPS_OF_BLOCK, uint32_t SLOTS, uint32_t UNITS>
__device__ __forceinline__ void packed_rows(const ExpertsParams& p) {
    using Ring = Ring<8 * TILES, SLOTS, UNITS>;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(8) uint64_t arrived[WARPS_OF_BLOCK * SLOTS];
    uint32_t* const ends = (uint32_t*)(shared + WARPS_OF_BLOCK * Ring::BYTES);
    uint32_t* const begins = ends + p.experts;

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    // This warp's part of k, the same of every item.
    const uint32_t part = warp % PARTS, all = p.k / PACKED_K;
    const uint32_t first_unit = part * all / PARTS, units = (part + 1) * all / PARTS - first_unit;
    Ring ring = {shared + warp * Ring::BYTES, shared_address(arrived + warp * SLOTS), first_unit, units};
    if (lane == 0) {
        for (uint32_t i = 0; i < SLOTS; ++i) init_barrier(ring.barriers + 8 * i);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    if (!p.sorted_before) wait_for_last();
    const uint32_t tiles = count_tiles<8 * TILES, 32 * WARPS_OF_BLOCK>(p, ends, begins);
    const Turns turns = {tiles * p.pieces, warp / PARTS, WARPS_OF_BLOCK / PARTS};
    // What it has to know comes before the weights, and not behind them.
    Item<TILES> next;
    uint32_t item = turns.item(0);
    if (item < turns.items) next.template find<GATED>(p, ends, begins, item);
    for (uint32_t i = 0; i < SLOTS; ++i) ring.ask(p, ends, turns, i);
    if (p.sorted_before) wait_for_last();
    let_next_start();
    for (uint32_t turn = 1; item < turns.items; ++turn) {
        const Item<TILES> now = next;
        const bf16* x[TILES];
        bool there[TILES];
        float weight[TILES];  // of this lane's rows
        // Of a row that is not there zeros.
        UnitOfX<TILES> of_unit = {};
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            there[i] = 8 * i + g < now.tile.rows;
            x[i] = (const bf16*)p.x + (GATED ? (uint32_t)now.route[i] / p.top_k : now.route[i]) * p.x_stride + first_unit * PACKED_K + 8 * q;
            weight[i] = GATED ? p.weights[now.route[i]] : 0.0f;
#pragma unroll
            for (uint32_t s = 0; s < 4; ++s) {
                if (there[i]) read(x[i] + 32 * s, of_unit[i][s]);
            }
        }
        item = turns.item(turn);
        if (item < turns.items) next.template find<GATED>(p, ends, begins, item);
        float sum[2][TILES][4] = {};
        if (now.marked) multiply_item<TILES, true>(p, ends, turns, ring, x, there, of_unit, sum);
        else multiply_item<TILES, false>(p, ends, turns, ring, x, there, of_unit, sum);
        if constexpr (PARTS == 2) {
            if (!add_other_half<WARPS_OF_BLOCK>(sum, part)) continue;
        }
#pragma unroll
        for (int i = 0; i < TILES; ++i)
#pragma unroll
            for (uint32_t c = 0; c < 2; ++c) {
                const uint32_t in_tile = 2 * q + c, of_tile = 8 * i + in_tile;
                const float of_row = GATED ? __shfl_sync(~0u, weight[i], 4 * in_tile) : 0.0f;
                if (of_tile >= now.tile.rows) continue;
                const float low = sum[0][i][c] + sum[1][i][c], high = sum[0][i][c + 2] + sum[1][i][c + 2];
                store_group<GATED>(p, now.tile.row + of_tile, now.group, g, low, high, of_row);
            }
    }
}

// Kernels are named experts_<half>_<rows>_rows_packed, and _halves where two warps share k.
#define KERNEL(HALF, GATED, ROWS, NAME, PARTS, WARPS_OF_BLOCK, RESIDENT, SLOTS, UNITS)   \
    extern "C" __global__ void __launch_bounds__(32 * WARPS_OF_BLOCK, RESIDENT)          \
    experts_##HALF##_##ROWS##_rows_##NAME(const __grid_constant__ ExpertsParams p) {     \
        packed_rows<GATED, ROWS / 8, PARTS, WARPS_OF_BLOCK, SLOTS, UNITS>(p);            \
    }
KERNEL(gated, true, 8, packed_halves, 2, 12, 2, 2, 2)
KERNEL(down, false, 8, packed_halves, 2, 12, 2, 2, 2)
KERNEL(gated, true, 8, packed, 1, 12, 2, 2, 2)
KERNEL(down, false, 8, packed, 1, 12, 2, 2, 2)
KERNEL(gated, true, 16, packed, 1, 16, 1, 2, 2)
KERNEL(down, false, 16, packed, 1, 16, 1, 2, 2)
#endif
