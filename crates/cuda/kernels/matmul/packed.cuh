// FP8 weights as Hopper's kernels for few tokens stream them.
//
// ## Layout
// 1. Sixteen rows are a group: 16 following ones, or 8 of the gate and the matching 8 of the up half.
// 2. Groups are dealt out to streams, each a stretch of them: stream s has those from
//    s * groups / streams on.
// 3. A stream is a unit for each 64 of k: HEAD bytes with the scales of its groups, then their codes.
// 4. The codes of a group are in the order of wgmma's fragments: for rows 0 to 7, then for 8 to 15, sixteen of each
//    lane. Lane 4 * g + q has row g, and four codes of each 16 of k: 2 * q, 8 + 2 * q, 1 + 2 * q, 9 + 2 * q. So the even
//    bytes of a word are a row's one fragment of a product, and the odd ones the other.
// 5. The scales of a group are four f32s: of both halves of its rows for k below 32, then from 32 on.
#pragma once
#include "matmul.cuh"

constexpr uint32_t UNIT_K = 64, HEAD = 128, GROUP_CODES = 16 * UNIT_K;

// The twin of `Packing` in src/launch/params.rs.
struct Packing {
    uint32_t streams, groups;
    uint32_t group_rows;  // from a group's first row to the next one's: 16, or 8 of paired rows
    uint32_t half_rows;   // from a group's first row to its ninth: 8, or the rows of the gate
};
TWIN_SIZE(Packing, 16);
TWIN_FIELD(Packing, streams, 0);
TWIN_FIELD(Packing, groups, 4);
TWIN_FIELD(Packing, group_rows, 8);
TWIN_FIELD(Packing, half_rows, 12);

// A stretch of groups, and where its units lie.
struct Stream {
    uint32_t first, groups;
    uint32_t unit;     // bytes
    uint64_t offset;   // of the first unit

    __device__ __forceinline__ Stream(const Packing& p, uint32_t s, uint32_t units) {
        first = s * p.groups / p.streams;
        groups = (s + 1) * p.groups / p.streams - first;
        unit = HEAD + groups * GROUP_CODES;
        offset = (uint64_t)units * (s * HEAD + first * GROUP_CODES);
    }
};

// Where a group's codes of the first unit lie, and the bytes from unit to unit.
struct GroupPlace {
    uint64_t codes;
    uint32_t unit;

    __device__ __forceinline__ GroupPlace(const Packing& p, uint32_t group, uint32_t units) {
        const Stream s(p, ((group + 1) * p.streams - 1) / p.groups, units);
        codes = s.offset + HEAD + (group - s.first) * GROUP_CODES;
        unit = s.unit;
    }
};

// The row of the weight that is a group's r-th.
__device__ __forceinline__ uint32_t packed_row(const Packing& p, uint32_t group, uint32_t r) {
    return group * p.group_rows + r % 8 + (r >= 8 ? p.half_rows : 0);
}
