// Matmuls of routed experts in packed FP4 with many rows each, on Hopper's warpgroups.
//
// ## Method
// 1. Rows of x are gathered first, an expert's behind another's. Each 32 of k come in the order in which the words of codes
//    that a lane has (packed.cuh) are the tensor cores' fragments: codes go from shared memory to fragments in their lane.
// 2. An item is a tile of up to TOKENS rows of an expert by a piece of its weight, of which each of the two blocks of a
//    cluster takes a half. Each brings half of the tile's rows, to both. An expert's rows are shared out evenly among its
//    tiles, and a product has as many columns as the tile has rows, up to a multiple of 8.
// 3. Weights are the rows of the products, in registers; rows of x their columns, in shared memory. A warpgroup has SLABS
//    products of 64 rows. 64 of k are decoded while the 64 before them are multiplied.
// 4. Four warps copy stages of 128 of k into a ring, those of the next item before this one ends.
// 5. Sums are rounded to bf16 and turned in shared memory, each warp's by themselves, so that a lane stores 16 bytes of a
//    row. The first half is activated on the way: a warp has the gates and ups of the same outputs.
#pragma once
#include "experts.cuh"
#include "packed.cuh"
#include "../common/cluster.cuh"
#include "../common/words.cuh"
#include "../matmul/columns.cuh"

// The twin of `GatherParams` in src/launch/params.rs.
struct GatherParams {
    const bf16* from;         // rows begin at multiples of 16 bytes
    bf16* to;                 // [rows, columns]
    const int32_t* offsets;   // of experts
    const int32_t* sorted;    // null: `from` has the rows as they are
    uint64_t from_stride;     // elements
    uint32_t columns;         // a multiple of 128
    uint32_t first, experts;  // whose rows
    uint32_t top_k;
};
TWIN_SIZE(GatherParams, 56);
TWIN_FIELD(GatherParams, from, 0);
TWIN_FIELD(GatherParams, to, 8);
TWIN_FIELD(GatherParams, offsets, 16);
TWIN_FIELD(GatherParams, sorted, 24);
TWIN_FIELD(GatherParams, from_stride, 32);
TWIN_FIELD(GatherParams, columns, 40);
TWIN_FIELD(GatherParams, first, 44);
TWIN_FIELD(GatherParams, experts, 48);
TWIN_FIELD(GatherParams, top_k, 52);

// The twin of `GatheredParams` in src/launch/params.rs.
struct GatheredParams {
    TensorMap x;  // the gathered rows, eight at a time
    ExpertsParams experts;
};
TWIN_SIZE(GatheredParams, 320);
TWIN_FIELD(GatheredParams, x, 0);
TWIN_FIELD(GatheredParams, experts, 128);

// A block takes one row after another.
__device__ __forceinline__ void gather(const GatherParams& p) {
    begin();
    const uint32_t row0 = p.offsets[p.first], rows = p.offsets[p.first + p.experts] - row0, pieces = p.columns / 8;
    for (uint32_t i = blockIdx.x; i < rows; i += gridDim.x) {
        const uint64_t row = row0 + i;
        const bf16* const from = p.from + (p.sorted ? (uint32_t)p.sorted[row] / p.top_k : row) * p.from_stride;
        bf16* const to = p.to + row * p.columns;
        for (uint32_t first = 0; first < pieces; first += blockDim.x) {
            const uint32_t piece = first + threadIdx.x;
            uint32_t words[4] = {};
            if (piece < pieces) read(from + 8 * piece, words);
            turn_words(words);
            if (piece < pieces) *(uint4*)(to + 8 * piece) = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

// Warps that copy: one would take longer to ask for a stage's pieces than products take.
constexpr uint32_t COPIERS = 4;

// The shape of a block.
template <int WARPGROUPS, int SLABS_, int TOKENS_, int STAGES_> struct GatheredShape {
    static constexpr int SLABS = SLABS_, TOKENS = TOKENS_, STAGES = STAGES_;
    static constexpr uint32_t WARPS = WARPGROUPS * 4, THREADS = 32 * (WARPS + COPIERS);
    static constexpr uint32_t GROUPS = WARPS * SLABS;  // of 16 rows of the weight
    static constexpr uint32_t HALF = TOKENS * 128, X = 2 * HALF, STAGE = X + GROUPS * PACKED_UNIT;
    static constexpr uint32_t SUMS = STAGES * STAGE, OF_WARP = TOKENS * 32 * SLABS, BARRIERS = SUMS + WARPS * OF_WARP;
    static constexpr uint32_t ENDS = BARRIERS + STAGES * 16;
    static_assert(STAGE % 1024 == 0, "the swizzle is one of addresses");

    static __device__ __forceinline__ uint32_t full(uint32_t base, uint32_t stage) { return base + BARRIERS + 16 * stage; }
    static __device__ __forceinline__ uint32_t empty(uint32_t base, uint32_t stage) { return full(base, stage) + 8; }
};

// A tile by a block's half of a piece.
template <class Shape> struct GatheredItem {
    ExpertTile tile;
    uint32_t columns;  // of products
    uint32_t group;    // the first of this block's

    __device__ __forceinline__ GatheredItem(
        const ExpertsParams& p, const uint32_t* ends, uint32_t item, uint32_t rank) {
        const uint32_t of = p.by_pieces.quotient(item), piece = item - of * p.pieces;
        tile = ExpertTile::find<Shape::TOKENS>(p, ends, of);
        const int32_t* const at = p.offsets + p.first + tile.expert;
        const uint32_t before = tile.expert ? ends[tile.expert - 1] : 0, tiles = ends[tile.expert] - before;
        const uint32_t each = ((at[1] - at[0] + tiles - 1) / tiles + 7) & ~7u, from = (of - before) * each;
        tile.row = at[0] + from;
        tile.rows = min(each, max(at[1] - (int32_t)tile.row, 0));
        columns = (tile.rows + 7) & ~7u;
        group = (2 * piece + rank) * Shape::GROUPS;
    }
};

// A lane's words of 64 of k of a group, as fragments of four products.
template <int HALF>
__device__ __forceinline__ void decode_half(const uint8_t* unit, bool marked, uint32_t (&to)[16]) {
    const uint32_t lane = threadIdx.x % 32, select = HALF ? 0x3424u : 0x1404u, most = 0x7e807e80u;
    const uint2 of_row[2] = {*(const uint2*)(unit + lane * 16 + 8 * HALF),
        *(const uint2*)(unit + PACKED_CODES / 2 + lane * 16 + 8 * HALF)};
    const uint2 scales = *(const uint2*)(unit + PACKED_CODES + 8 * (lane / 4));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const uint32_t factors = marked ? most : __byte_perm(r ? scales.y : scales.x, 0, select) >> 1;
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            uint32_t pairs[4];
            widen_packed(s ? of_row[r].y : of_row[r].x, pairs);
#pragma unroll
            for (int j = 0; j < 4; ++j) to[8 * s + 2 * j + r] = times_half(pairs[j], factors, s);
        }
    }
}
// The second multiplication that experts with a mark take.
template <int HALF> __device__ __forceinline__ void scale_half(const uint8_t* unit, uint32_t (&to)[16]) {
    const uint2 scales = *(const uint2*)(unit + PACKED_CODES + 8 * (threadIdx.x % 32 / 4));
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            const uint32_t scale = power2(((r ? scales.y : scales.x) >> 8 * (2 * HALF + s)) - PACKED_BIAS & 255);
#pragma unroll
            for (int j = 0; j < 4; ++j) to[8 * s + 2 * j + r] = times2(to[8 * s + 2 * j + r], scale);
        }
}
// Those of following groups.
template <int HALF, int SLABS>
__device__ __forceinline__ void decode_slabs(const uint8_t* unit, bool marked, uint32_t (&to)[SLABS][16]) {
#pragma unroll
    for (int m = 0; m < SLABS; ++m) decode_half<HALF>(unit + m * PACKED_UNIT, marked, to[m]);
    if (marked) {
#pragma unroll
        for (int m = 0; m < SLABS; ++m) scale_half<HALF>(unit + m * PACKED_UNIT, to[m]);
    }
}

// Where a warp has eight outputs' sums of a token: no two lanes of an access meet in a bank.
template <int SLABS> __device__ __forceinline__ uint32_t sums_at(uint32_t token, uint32_t piece) {
    constexpr uint32_t PIECES = 2 * SLABS;
    return token * (16 * PIECES) + (piece ^ token / (8 / PIECES) % PIECES) * 16;
}

// An item's sums, of a warp's groups, to its place in shared memory.
template <class Shape>
__device__ __forceinline__ void multiply_item(
    const uint8_t* memory, uint32_t units, uint32_t columns, bool marked, RingPlace& at) {
    constexpr int SLABS = Shape::SLABS;
    const uint32_t base = shared_address(memory), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint64_t x = describe_rows(base);
    const uint8_t* const weights = memory + Shape::X + warp * SLABS * PACKED_UNIT;
    float sum[SLABS][Shape::TOKENS / 2] = {};
    uint32_t first[SLABS][16], second[SLABS][16];
    const auto decode_first = [&] {
        wait_barrier<false>(Shape::full(base, at.stage), at.parity);
        decode_slabs<0>(weights + at.stage * Shape::STAGE, marked, first);
    };
    // Both blocks copy to a stage: both are told.
    const auto release = [&](uint32_t stage) {
        if (lane < 2) arrive_in_block(in_block(Shape::empty(base, stage), lane));
    };
    decode_first();
    uint32_t before = 0;
    for (uint32_t unit = 0; unit < units; ++unit) {
        const uint32_t stage = at.stage;
        multiply_columns(sum, first, x + stage * (Shape::STAGE / 16), columns);
        // What reads the stage before and `second` has ended.
        wait_for_groups<1>();
        if (unit > 0) release(before);
        decode_slabs<1>(weights + stage * Shape::STAGE, marked, second);
        multiply_columns(sum, second, x + (stage * Shape::STAGE + Shape::HALF) / 16, columns);
        before = stage;
        at.advance(Shape::STAGES);
        wait_for_groups<1>();
        if (unit + 1 < units) decode_first();
    }
    wait_for_groups<0>();
    release(before);
    const uint32_t to = base + Shape::SUMS + warp * Shape::OF_WARP, token = lane % 8, half = lane / 8 % 2;
#pragma unroll
    for (int t = 0; t < Shape::TOKENS / 8; ++t) {
        if (8 * t >= columns) continue;
#pragma unroll
        for (int m = 0; m < SLABS; ++m) {
            const uint32_t low = narrow2(bf16(), sum[m][4 * t], sum[m][4 * t + 1]);
            const uint32_t high = narrow2(bf16(), sum[m][4 * t + 2], sum[m][4 * t + 3]);
            store_matrices(to + sums_at<SLABS>(8 * t + token, 2 * m + half), low, high);
        }
    }
    __syncwarp();
}

// Eight outputs of a row.
template <typename F, Clamp C>
__device__ __forceinline__ void activate_eight(
    const Scalars& s, const uint32_t (&gates)[4], const uint32_t (&ups)[4], float w, uint32_t (&to)[4]) {
    const auto one = [&](uint32_t gate, uint32_t up) {
        return gated<F, C, bf16, false>(__uint_as_float(gate), __uint_as_float(up), s) * w;
    };
    const uint32_t upper = 0xffff0000u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[i] = narrow2(bf16(), one(gates[i] << 16, ups[i] << 16), one(gates[i] & upper, ups[i] & upper));
    }
}

// Stores a warp's sums. `weights`: of the routes of token 32 * i + lane.
template <bool GATED, class Shape>
__device__ __forceinline__ void store_item(
    const ExpertsParams& p, const ExpertTile& tile, uint32_t group, uint8_t* sums,
    const float (&weights)[Shape::TOKENS / 32]) {
    constexpr uint32_t SLABS = Shape::SLABS, PIECES = GATED ? SLABS : 2 * SLABS, AT_ONCE = 32 / PIECES;
    const uint32_t lane = threadIdx.x % 32, piece = lane % PIECES, n = (GATED ? 8 : 16) * group + 8 * piece;
#pragma unroll 1
    for (uint32_t token0 = 0; token0 < tile.rows; token0 += AT_ONCE) {
        const uint32_t token = token0 + lane / PIECES;
        uint32_t to[4];
        if constexpr (GATED) {
            float of_lane = weights[0];
#pragma unroll
            for (uint32_t i = 1; i < Shape::TOKENS / 32; ++i) {
                if (token0 / 32 == i) of_lane = weights[i];
            }
            const float w = __shfl_sync(~0u, of_lane, token % 32);
            uint8_t* const at = sums + sums_at<SLABS>(token, 2 * piece);
            const uint8_t* const ups_at = sums + sums_at<SLABS>(token, 2 * piece + 1);
            uint32_t gates[4], ups[4];
            read(at, gates), read(ups_at, ups);
            if (p.form == SILU) activate_eight<Silu, Clamp::None>(p.scalars, gates, ups, w, to);
            else if (p.form == SILU_CLAMPED) activate_eight<Silu, Clamp::Before>(p.scalars, gates, ups, w, to);
            else {
                // One after another, as most of the text of FORMS is never run.
#pragma unroll 1
                for (uint32_t i = 0; i < 8; ++i) {
                    bf16& gate = ((bf16*)at)[i];
                    gate = activate(p.form, widen(gate), widen(((const bf16*)ups_at)[i]), w, p.scalars);
                }
                read(at, to);
            }
        } else {
            read(sums + sums_at<SLABS>(token, piece), to);
        }
        if (token < tile.rows && n < p.outputs) {
            *(uint4*)(p.y + (tile.row + token) * p.y_stride + n) = make_uint4(to[0], to[1], to[2], to[3]);
        }
    }
    __syncwarp();
}

// The registers of a thread that copies and of one that multiplies are dealt out.
template <bool GATED, class Shape, int COPYING, int MULTIPLYING>
__device__ __forceinline__ void multiply_gathered(const GatheredParams& params) {
    extern __shared__ __align__(1024) uint8_t memory[];
    const ExpertsParams& p = params.experts;
    uint32_t* const ends = (uint32_t*)(memory + Shape::ENDS);
    // The compiler is to see that it is one of a warp.
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t base = shared_address(memory), rank = blockIdx.x % 2, units = p.k / PACKED_K;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < Shape::STAGES; ++i) {
            init_barrier(Shape::full(base, i), COPIERS);
            init_barrier(Shape::empty(base, i), 2 * Shape::WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    begin();
    const uint32_t items = count_tiles<Shape::TOKENS, Shape::THREADS>(p, ends) * p.pieces;
    sync_cluster();
    RingPlace at;
    if (warp >= Shape::WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COPYING));
        const uint32_t groups = p.outputs / (GATED ? 8 : 16), of_group = units * PACKED_UNIT;
        const uint32_t copier = warp - Shape::WARPS;
        for (uint32_t item = blockIdx.x / 2; item < items; item += gridDim.x / 2) {
            const GatheredItem<Shape> of(p, ends, item, rank);
            if (of.columns == 0) continue;
            // A lane copies a unit of a group. Beyond the last group the last one stands in, and its results are not stored.
            const uint32_t group = min(of.group + copier + lane * COPIERS, groups - 1);
            const uint8_t* w = p.w + of.tile.expert * p.w_stride + (uint64_t)group * of_group;
            const uint32_t unit_at = Shape::X + (copier + lane * COPIERS) * PACKED_UNIT;
            // Or eight rows of 64 of k. Of an odd number of eights the first block has one more.
            const uint32_t eights = of.columns / 8, own = (eights + 1 - rank) / 2, box = copier + lane * COPIERS;
            const uint32_t half = box >= own, row = 8 * (rank * (eights - own) + box - half * own);
            const uint32_t row_at = half * Shape::HALF + row * 128;
            // What the warps of both blocks bring is told to each.
            uint32_t bytes = Shape::GROUPS / COPIERS * PACKED_UNIT;
            if (copier == 0) bytes += of.columns * 2 * PACKED_K;
            for (uint32_t unit = 0; unit < units; ++unit, w += PACKED_UNIT, at.advance(Shape::STAGES)) {
                const uint32_t stage = base + at.stage * Shape::STAGE, full = Shape::full(base, at.stage);
                wait_barrier<false>(Shape::empty(base, at.stage), at.parity ^ 1);
                if (lane == 0) expect_bytes(full, bytes);
                __syncwarp();
                if (box < 2 * own) {
                    const uint32_t k = unit * PACKED_K + half * (PACKED_K / 2);
                    tensor_copy_to_blocks(stage + row_at, params.x, k, of.tile.row + row, full, 3);
                }
                if (lane < Shape::GROUPS / COPIERS) bulk_copy(stage + unit_at, w, PACKED_UNIT, full);
            }
        }
        __syncwarp();
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MULTIPLYING));
        for (uint32_t item = blockIdx.x / 2; item < items; item += gridDim.x / 2) {
            const GatheredItem<Shape> of(p, ends, item, rank);
            if (of.columns == 0) continue;
            const bool marked = ((const uint8_t*)p.scales)[of.tile.expert];
            float weights[Shape::TOKENS / 32] = {};
#pragma unroll
            for (uint32_t i = 0; GATED && i < Shape::TOKENS / 32; ++i) {
                const uint32_t token = 32 * i + lane;
                if (token < of.tile.rows) weights[i] = p.weights[p.sorted[of.tile.row + token]];
            }
            multiply_item<Shape>(memory, units, of.columns, marked, at);
            uint8_t* const sums = memory + Shape::SUMS + warp * Shape::OF_WARP;
            store_item<GATED, Shape>(p, of.tile, of.group + warp * Shape::SLABS, sums, weights);
        }
    }
    // No block leaves while the other copies to it.
    sync_cluster();
}
