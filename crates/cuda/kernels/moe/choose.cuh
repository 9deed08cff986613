// What a router is called with, and how a warp lets a token choose: parts of route.cu, which has the method.
#pragma once
#include "../common/memory.cuh"

// The twin of `RouteParams` in src/launch/params.rs.
struct RouteParams {
    const bf16* x;             // [tokens, hidden]
    const bf16* w;             // [experts, hidden]
    float* logits;             // [splits, tokens, experts], to be added up; scores when a token has chosen
    const float* bias;         // [experts], or null
    const float* bias_vl;      // [experts], or null
    const int32_t* table;      // [vocabulary, top_k], or null
    const int32_t* token_ids;  // [tokens] each, or null
    const int32_t* image;
    const int32_t* padding;
    int32_t* ids;              // [tokens, top_k]
    float* weights;            // [tokens, top_k]
    int32_t* offsets;          // [experts + 1]
    int32_t* sorted;           // [tokens * top_k]
    int32_t* rows;             // [tokens, top_k]
    uint64_t x_stride;         // elements
    uint32_t tokens, hidden, experts, top_k;
    Divisor by_top_k, by_experts;
    uint32_t vocabulary;
    uint32_t normalize;
    float scale;
    uint32_t splits;
    uint32_t beside;           // whether the logits are there before the kernel before the choice ends
};
TWIN_SIZE(RouteParams, 176);
TWIN_FIELD(RouteParams, x, 0);
TWIN_FIELD(RouteParams, w, 8);
TWIN_FIELD(RouteParams, logits, 16);
TWIN_FIELD(RouteParams, bias, 24);
TWIN_FIELD(RouteParams, bias_vl, 32);
TWIN_FIELD(RouteParams, table, 40);
TWIN_FIELD(RouteParams, token_ids, 48);
TWIN_FIELD(RouteParams, image, 56);
TWIN_FIELD(RouteParams, padding, 64);
TWIN_FIELD(RouteParams, ids, 72);
TWIN_FIELD(RouteParams, weights, 80);
TWIN_FIELD(RouteParams, offsets, 88);
TWIN_FIELD(RouteParams, sorted, 96);
TWIN_FIELD(RouteParams, rows, 104);
TWIN_FIELD(RouteParams, x_stride, 112);
TWIN_FIELD(RouteParams, tokens, 120);
TWIN_FIELD(RouteParams, hidden, 124);
TWIN_FIELD(RouteParams, experts, 128);
TWIN_FIELD(RouteParams, top_k, 132);
TWIN_FIELD(RouteParams, by_top_k, 136);
TWIN_FIELD(RouteParams, by_experts, 144);
TWIN_FIELD(RouteParams, vocabulary, 152);
TWIN_FIELD(RouteParams, normalize, 156);
TWIN_FIELD(RouteParams, scale, 160);
TWIN_FIELD(RouteParams, splits, 164);
TWIN_FIELD(RouteParams, beside, 168);

constexpr uint32_t ALL = 0xffffffffu;

// sqrt(softplus(l)): log1p keeps what log(1 + e) loses below -16.6, and the comparison takes no NaN to 0. From -20 on
// down it is exp(l / 2) to the last bit, which no subnormal exp(l) comes between. A call, as instructions that run once
// are slower to fetch than to run.
static __device__ __noinline__ float score(float l) {
    if (l < -20.0f) return expf(0.5f * l);
    const float above = l < 0.0f ? 0.0f : l;
    return sqrtf(above + log1pf(expf(-fabsf(l))));
}

// A number as an integer in the same order: -0 is +0, and every NaN is above all.
__device__ __forceinline__ uint32_t ordered(float x) {
    if (x != x) return ALL;
    const uint32_t bits = x == 0.0f ? 0 : __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// How a token chooses.
struct Choice {
    float* logits;      // of the first split; scores of experts that registers do not hold
    const float* bias;  // null where it hashes, or there is none
    const int32_t* row; // of the table, if it hashes
    bool none;          // no expert
};
__device__ __forceinline__ Choice choice_of(const RouteParams& p, uint32_t token) {
    const bool image = p.bias_vl != nullptr && p.image != nullptr && __ldcg(p.image + token) != 0;
    Choice c = {p.logits + (uint64_t)token * p.experts, image ? p.bias_vl : p.bias, nullptr, false};
    c.none = p.padding != nullptr && __ldcg(p.padding + token) != 0;
    if (p.table != nullptr && !image) {
        const uint32_t of_table = (uint32_t)__ldcg(p.token_ids + token);
        c.none |= of_table >= p.vocabulary;
        c.row = p.table + (uint64_t)of_table * p.top_k;
    }
    return c;
}

// The logits of which `at` tells the first of their sums over pieces of k, null for none: those are added up in order,
// and those of several pieces asked for at once.
template <uint32_t N, typename F> __device__ __forceinline__ void add_logits(const RouteParams& p, const F& at, float (&to)[N]) {
    const uint64_t split = (uint64_t)p.tokens * p.experts;
#pragma unroll
    for (uint32_t j = 0; j < N; ++j) to[j] = 0.0f;
#pragma unroll 4
    for (uint32_t i = 0; i < p.splits; ++i)
#pragma unroll
        for (uint32_t j = 0; j < N; ++j) {
            const float* const from = at(j);
            if (from != nullptr) to[j] += __ldcg(from + i * split);
        }
}

// An expert's place in the order.
__device__ __forceinline__ uint32_t key_of(float s, const float* bias, uint32_t expert) {
    return ordered(s + (bias != nullptr ? bias[expert] : 0.0f));
}

__device__ __forceinline__ void store_choice(
    const RouteParams& p, uint32_t token, uint32_t slot, int32_t id, float weight) {
    const uint32_t at = token * p.top_k + slot;
    p.ids[at] = id, p.weights[at] = weight;
}
__device__ __forceinline__ float weight_of(const RouteParams& p, double s, double sum) {
    return (float)((p.normalize ? s / sum : s) * p.scale);
}

// A warp's token chooses among experts whose scores and places in the order its lanes keep, KEPT each; there are
// slots for at most as many as lanes. Key 0 is what has been chosen, and what is no expert: every number is above it.
template <uint32_t KEPT>
__device__ __forceinline__ void choose_kept(const RouteParams& p, uint32_t token, const Choice& c,
    const float (&s)[KEPT], uint32_t (&keys)[KEPT]) {
    const uint32_t lane = threadIdx.x % 32;
    // Of this lane's slot.
    int32_t id = c.row != nullptr && lane < p.top_k ? c.row[lane] : 0;
    float chosen = 0.0f;
    for (uint32_t slot = 0; slot < p.top_k; ++slot) {
        uint32_t of = __shfl_sync(ALL, id, slot);
        if (c.row == nullptr) {
            uint32_t most = 0, place = 0;
#pragma unroll
            for (uint32_t j = 0; j < KEPT; ++j) {
                if (keys[j] > most) most = keys[j], place = j;
            }
            const uint32_t top = __reduce_max_sync(ALL, most);
            of = __reduce_min_sync(ALL, most == top ? lane + 32 * place : ALL);
        }
        float mine = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < KEPT; ++j) {
            if (of == lane + 32 * j) keys[j] = 0, mine = s[j];
        }
        mine = __shfl_sync(ALL, mine, of % 32);
        if (lane == slot) id = (int32_t)of, chosen = mine;
    }
    double sum = 1e-20;
    for (uint32_t slot = 0; slot < p.top_k; ++slot) sum += __shfl_sync(ALL, chosen, slot);
    if (lane < p.top_k) store_choice(p, token, lane, id, weight_of(p, chosen, sum));
}

template <uint32_t KEPT>
__device__ __forceinline__ void choose_kept(const RouteParams& p, uint32_t token, const Choice& c) {
    const uint32_t lane = threadIdx.x % 32;
    float s[KEPT];
    uint32_t keys[KEPT];
    add_logits(p, [&](uint32_t j) { return lane + 32 * j < p.experts ? c.logits + lane + 32 * j : nullptr; }, s);
#pragma unroll
    for (uint32_t j = 0; j < KEPT; ++j) {
        const uint32_t e = lane + 32 * j;
        s[j] = score(s[j]);
        keys[j] = e < p.experts ? key_of(s[j], c.bias, e) : 0;
    }
    choose_kept<KEPT>(p, token, c, s, keys);
}

// Any number of experts and slots: scores lie in memory, and each round looks for what comes after the last one chosen.
__device__ __forceinline__ void choose_far(const RouteParams& p, uint32_t token, const Choice& c) {
    const uint32_t lane = threadIdx.x % 32;
    int32_t* const ids = p.ids + (uint64_t)token * p.top_k;
    for (uint32_t e = lane; e < p.experts; e += 32) {
        float logit[1];
        add_logits(p, [&](uint32_t) { return c.logits + e; }, logit);
        c.logits[e] = score(logit[0]);
    }
    uint32_t last_key = ALL;
    int32_t last = -1;  // before the first all come after it
    for (uint32_t slot = 0; slot < p.top_k; ++slot) {
        if (c.row != nullptr) {
            last = c.row[slot];
        } else {
            uint32_t most = 0, place = ALL;
            for (uint32_t e = lane; e < p.experts; e += 32) {
                const uint32_t of = key_of(c.logits[e], c.bias, e);
                const bool after = of < last_key || (of == last_key && (int32_t)e > last);
                if (after && of > most) most = of, place = e;
            }
            last_key = __reduce_max_sync(ALL, most);
            last = (int32_t)__reduce_min_sync(ALL, most == last_key ? place : ALL);
        }
        if (lane == 0) ids[slot] = last;
    }
    __syncwarp();
    double sum = 1e-20;
    for (uint32_t slot = 0; slot < p.top_k; ++slot) sum += c.logits[ids[slot]];
    for (uint32_t slot = lane; slot < p.top_k; slot += 32) {
        store_choice(p, token, slot, ids[slot], weight_of(p, c.logits[ids[slot]], sum));
    }
}

__device__ __forceinline__ void choose_none(const RouteParams& p, uint32_t token) {
    for (uint32_t i = threadIdx.x % 32; i < p.top_k; i += 32) store_choice(p, token, i, -1, 0.0f);
}

// A warp lets a token choose.
__device__ __forceinline__ void choose(const RouteParams& p, uint32_t token) {
    const Choice c = choice_of(p, token);
    if (c.none) choose_none(p, token);
    else if (p.top_k <= 32 && p.experts <= 256) choose_kept<8>(p, token, c);
    else if (p.top_k <= 32 && p.experts <= 512) choose_kept<16>(p, token, c);
    else choose_far(p, token, c);
}
