// How routes are sorted by expert: a part of route.cu, which has the method.
#pragma once
#include "choose.cuh"

// Of an id that is no expert's the last, which stands for none.
__device__ __forceinline__ uint32_t expert_of(const RouteParams& p, int32_t id) {
    return min((uint32_t)id, p.experts);
}

// A route has this row.
__device__ __forceinline__ void store_row(
    const RouteParams& p, const int32_t* ids, uint32_t route, uint32_t expert, uint32_t row) {
    const uint32_t token = p.by_top_k.quotient(route), slot = route - token * p.top_k;
    // Of the token's rows, how many come before.
    const int32_t* const of_token = ids + (uint64_t)token * p.top_k;
    uint32_t before = 0;
    for (uint32_t i = 0; i < p.top_k; ++i) before += expert_of(p, of_token[i]) < expert + (i < slot);
    const bool none = expert == p.experts;
    p.sorted[row] = none ? -1 : (int32_t)route;
    p.rows[(uint64_t)token * p.top_k + before] = none ? -1 : (int32_t)row;
}

// Routes that have room in shared memory, and the experts whose numbers leave room for theirs in a word.
constexpr uint32_t NEAR = 1024, NEAR_EXPERTS = 1u << 21;
__device__ __forceinline__ bool is_near(const RouteParams& p) {
    return p.tokens * p.top_k <= NEAR && p.experts < NEAR_EXPERTS;
}

// Numbers of few routes in the order of experts, then of routes; none come behind the last.
__device__ __forceinline__ void number_near(const RouteParams& p, uint4* keys, uint32_t route, int32_t id) {
    ((uint32_t*)keys)[route] = route < p.tokens * p.top_k ? expert_of(p, id) * NEAR + route : ALL;
}

// Sorts few routes by their numbers: those threads from the `first` of `threads`, AT_ONCE times four numbers a time.
template <int AT_ONCE>
__device__ __forceinline__ void sort_near(
    const RouteParams& p, const uint4* keys, uint32_t first, uint32_t threads) {
    const uint32_t routes = p.tokens * p.top_k, fours = (routes + 3) / 4;
#pragma unroll 1
    for (uint32_t job = first; job <= p.experts + routes; job += threads) {
        // Experts first, and the one of none; then routes.
        const bool is_route = job > p.experts;
        const uint32_t route = is_route ? job - p.experts - 1 : 0;
        const uint32_t key = is_route ? ((const uint32_t*)keys)[route] : job * NEAR;
        uint32_t before = 0;
#pragma unroll AT_ONCE
        for (uint32_t i = 0; i < fours; ++i) {
            const uint4 k = keys[i];
            before += (k.x < key) + (k.y < key) + (k.z < key) + (k.w < key);
        }
        if (!is_route) {
            p.offsets[job] = (int32_t)before;
            continue;
        }
        // Of the token's rows, how many come before.
        const uint32_t of_token = p.by_top_k.quotient(route) * p.top_k;
        uint32_t slot = of_token;
#pragma unroll 1
        for (uint32_t i = 0; i < p.top_k; ++i) slot += ((const uint32_t*)keys)[of_token + i] < key;
        const bool none = key / NEAR == p.experts;
        p.sorted[before] = none ? -1 : (int32_t)route;
        p.rows[slot] = none ? -1 : (int32_t)before;
    }
}

// A warp finds the rows of an expert, or of none, in the ids of all routes.
__device__ __forceinline__ void sort_expert(const RouteParams& p, uint32_t expert) {
    const uint32_t lane = threadIdx.x % 32, routes = p.tokens * p.top_k;
    uint32_t lower = 0;
    for (uint32_t r = lane; r < routes; r += 32) lower += expert_of(p, p.ids[r]) < expert;
    uint32_t row = __reduce_add_sync(ALL, lower);
    if (lane == 0) p.offsets[expert] = (int32_t)row;
    for (uint32_t first = 0; first < routes; first += 32) {
        const uint32_t route = first + lane;
        const bool mine = route < routes && expert_of(p, p.ids[route]) == expert;
        const uint32_t all = __ballot_sync(ALL, mine);
        if (mine) store_row(p, p.ids, route, expert, row + __popc(all & ((1u << lane) - 1)));
        row += __popc(all);
    }
}
