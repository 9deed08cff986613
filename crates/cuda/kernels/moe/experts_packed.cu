// Matmuls of routed experts in FP4 with few rows each, as fast as their weights are read; and what packs them.
//
// ## Method
// 1. A warp takes a group of 16 rows of an expert's weight (packed.cuh) and a tile of 8 to 32 rows of x, and all of k.
// 2. It asks for its groups by bulk copies into a ring that no other warp touches, two units at a time, and for those
//    of its next item before it has multiplied this one's: memory does not wait for an epilogue.
// 3. Codes become bf16 in registers: bits to their places, then one multiplication by the scale, which has the factor
//    that is missing. An expert with a scale beyond 2 takes two.
// 4. Weights are the 16 rows of the tensor cores' product, rows of x its 8 columns. Rows of x come from the L1, those
//    of the next unit while this one is multiplied; of a tile with fewer rows nothing is read for the others.
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

// Of a block. Two slots of a ring are enough: the warps of a multiprocessor have 70 KB on their way.
constexpr uint32_t PACKED_WARPS = 16, PACKED_THREADS = 32 * PACKED_WARPS, SLOTS = 2, SLOT = 2 * PACKED_UNIT;

// What a warp asks for next, a slot at a time.
template <uint32_t ROWS> struct Ahead {
    uint32_t item, left = 0;
    const uint8_t* at = nullptr;

    // The next slot's bytes; 0 when there are no more.
    __device__ __forceinline__ uint32_t next(
        const ExpertsParams& p, const uint32_t* ends, uint32_t items, uint32_t step, uint32_t of_group) {
        if (left == 0) {
            if (item >= items) return 0;
            const uint32_t of = p.by_pieces.quotient(item), group = item - of * p.pieces;
            const ExpertTile tile = ExpertTile::find<ROWS>(p, ends, of);
            at = p.w + tile.expert * p.w_stride + (uint64_t)group * of_group;
            left = of_group;
            item += step;
        }
        return min(left, SLOT);
    }
};

// A lane's x of a unit: of TILES rows four times eight numbers.
template <int TILES> using UnitOfX = uint32_t[TILES][4][4];

// Adds the products of a unit. MARKED: a scale may be beyond what one multiplication takes.
template <int TILES, bool MARKED>
__device__ __forceinline__ void add_unit(float (&sum)[2][TILES][4], const uint8_t* unit, const UnitOfX<TILES>& x) {
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
    }
}

// What a warp has to know of an item. Its loads are asked for an item ahead.
template <int TILES> struct Item {
    ExpertTile tile;
    uint32_t group;
    int32_t route[TILES];  // of this lane's rows; the second half's: the rows themselves
    uint8_t marked;

    template <bool GATED>
    __device__ __forceinline__ void find(const ExpertsParams& p, const uint32_t* ends, uint32_t item) {
        const uint32_t of = p.by_pieces.quotient(item);
        group = item - of * p.pieces;
        tile = ExpertTile::find<8 * TILES>(p, ends, of);
        marked = ((const uint8_t*)p.scales)[tile.expert];
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            const uint32_t row = tile.row + min(8 * i + threadIdx.x % 32 / 4, tile.rows - 1);
            route[i] = GATED ? p.sorted[row] : (int32_t)row;
        }
    }
};

// TILES times 8 rows of x. Items that follow one another go to different blocks, which shares out few of them evenly.
template <bool GATED, int TILES> __device__ __forceinline__ void packed_rows(const ExpertsParams& p) {
    constexpr uint32_t ROWS = 8 * TILES;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ __align__(8) uint64_t arrived[PACKED_WARPS * SLOTS];
    uint32_t* const ends = (uint32_t*)(shared + PACKED_WARPS * SLOTS * SLOT);

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const uint32_t units = p.k / PACKED_K, of_group = units * PACKED_UNIT;
    const uint8_t* const ring = shared + warp * SLOTS * SLOT;
    const uint32_t ring_address = shared_address(ring), barriers = shared_address(arrived + warp * SLOTS);
    if (lane == 0) {
        for (uint32_t i = 0; i < SLOTS; ++i) init_barrier(barriers + 8 * i);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    begin();
    const uint32_t items = count_tiles<ROWS, PACKED_THREADS>(p, ends) * p.pieces;
    const uint32_t step = gridDim.x * PACKED_WARPS, first = warp * gridDim.x + blockIdx.x;

    Ahead<ROWS> ahead{first};
    uint32_t asked = 0, taken = 0, phase = 0;
    const auto ask = [&] {
        const uint32_t bytes = ahead.next(p, ends, items, step, of_group);
        if (bytes == 0) return;
        if (lane == 0) {
            expect_bytes(barriers + 8 * asked, bytes);
            bulk_copy(ring_address + asked * SLOT, ahead.at, bytes, barriers + 8 * asked);
        }
        ahead.at += bytes, ahead.left -= bytes;
        asked = asked + 1 == SLOTS ? 0 : asked + 1;
    };
    for (uint32_t i = 0; i < SLOTS; ++i) ask();

    Item<TILES> next;
    if (first < items) next.find<GATED>(p, ends, first);
    for (uint32_t item = first; item < items; item += step) {
        const Item<TILES> now = next;
        const bf16* x[TILES];
        bool there[TILES];
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
            there[i] = 8 * i + g < now.tile.rows;
            x[i] = (const bf16*)p.x + (GATED ? (uint32_t)now.route[i] / p.top_k : now.route[i]) * p.x_stride + 8 * q;
        }
        // Of a row that is not there zeros.
        UnitOfX<TILES> even = {}, odd = {};
        const auto read_x = [&](UnitOfX<TILES>& to, uint32_t unit) {
#pragma unroll
            for (int i = 0; i < TILES; ++i) {
                if (!there[i]) continue;
#pragma unroll
                for (int s = 0; s < 4; ++s) read(x[i] + unit * PACKED_K + 32 * s, to[i][s]);
            }
        };
        read_x(even, 0);
        if (item + step < items) next.find<GATED>(p, ends, item + step);
        float sum[2][TILES][4] = {};
        for (uint32_t unit = 0; unit < units; unit += 2) {
            wait_barrier<false>(barriers + 8 * taken, phase);
            const uint8_t* const at = ring + taken * SLOT;
            const bool two = unit + 1 < units;
            if (two) read_x(odd, unit + 1);
            if (now.marked) add_unit<TILES, true>(sum, at, even);
            else add_unit<TILES, false>(sum, at, even);
            if (unit + 2 < units) read_x(even, unit + 2);
            if (two) {
                if (now.marked) add_unit<TILES, true>(sum, at + PACKED_UNIT, odd);
                else add_unit<TILES, false>(sum, at + PACKED_UNIT, odd);
            }
            taken = taken + 1 == SLOTS ? 0 : taken + 1;
            phase ^= taken == 0;
            __syncwarp();
            ask();
        }
#pragma unroll
        for (int i = 0; i < TILES; ++i)
#pragma unroll
            for (uint32_t c = 0; c < 2; ++c) {
                const uint32_t of_tile = 8 * i + 2 * q + c;
                if (of_tile >= now.tile.rows) continue;
                const float low = sum[0][i][c] + sum[1][i][c], high = sum[0][i][c + 2] + sum[1][i][c + 2];
                store_group<GATED>(p, now.tile.row + of_tile, now.group, g, low, high);
            }
    }
}

// Kernels are named experts_<half>_<rows>_rows_packed.
#define KERNEL(HALF, GATED, ROWS)                                         \
    extern "C" __global__ void __launch_bounds__(PACKED_THREADS, 1)       \
    experts_##HALF##_##ROWS##_rows_packed(const __grid_constant__ ExpertsParams p) { packed_rows<GATED, ROWS / 8>(p); }
KERNEL(gated, true, 8)
KERNEL(down, false, 8)
KERNEL(gated, true, 16)
KERNEL(down, false, 16)
#endif
