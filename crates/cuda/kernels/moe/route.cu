// The router: which experts each token goes to, with which weight, and the routes sorted by expert.
//
// ## Method
// 1. Logits of few tokens in bf16: a block takes 16 experts, all tokens and a piece of k, on tensor cores. Its sums are
//    one of several that are added up in order where they are read: a launch has enough blocks, and none waits for
//    another. Others are a matmul.
// 2. A warp lets a token choose. In each round its lanes look for the best that is left, in descending order of the
//    biased score and ascending order of the expert. Few experts stay in registers, as numbers in that order.
// 3. Routes are sorted without a word between blocks. Of few routes a thread takes one, or an expert, and counts those
//    that come before it: that is its row, or where the expert's rows begin. Of many a warp takes an expert.
//    Routes to no expert go to a last expert of none, whose rows stay empty.
// 4. Of few tokens one block does both, by ranks: a round of the best is 0.3 us of one warp's latency.
#include "../matmul/fragments.cuh"
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

// The blocks that share k, and the experts of each, LOGITS_SPLITS and LOGITS_EXPERTS in src/moe/plan.rs.
constexpr uint32_t SPLITS = 8, EXPERTS = 16;

// Partial logits of 16 experts and of up to 64 tokens, whose rows are whole vectors: experts are the 16 rows of the
// tensor cores' product, tokens its 8 columns. A lane's 32 bytes of two rows are of 32 k, in the same order for both.
extern "C" __global__ void __launch_bounds__(128)
route_logits(const __grid_constant__ RouteParams p) {
    constexpr uint32_t WARPS = 4, TILES = 8, K = 32, AHEAD = 4;
    __shared__ float of_warp[WARPS][TILES][4][32];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const uint32_t split = blockIdx.y, piece = split * WARPS + warp, pieces = SPLITS * WARPS;
    const uint32_t steps = (p.hidden + K - 1) / K, first = piece * steps / pieces, end = (piece + 1) * steps / pieces;
    const uint32_t expert0 = blockIdx.x * EXPERTS;
    let_next_start();
    // Beyond the last expert the last one stands in, and its logits are not stored; beyond the last k are zeros.
    const auto row = [&](uint32_t r) { return p.w + (uint64_t)min(expert0 + r, p.experts - 1) * p.hidden + 8 * q; };
    const bf16 *const low = row(g), *const high = row(g + 8);
    uint32_t w[AHEAD][2][4];
    const auto read_w = [&](uint32_t step0) {
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; ++i) {
            const uint32_t k = (step0 + i) * K;
            const bool there = step0 + i < end && k + 8 * q < p.hidden;
            const uint4 none = {}, a = there ? *(const uint4*)(low + k) : none, b = there ? *(const uint4*)(high + k) : none;
            w[i][0][0] = a.x, w[i][0][1] = a.y, w[i][0][2] = a.z, w[i][0][3] = a.w;
            w[i][1][0] = b.x, w[i][1][1] = b.y, w[i][1][2] = b.z, w[i][1][3] = b.w;
        }
    };
    // The first of w come while the kernel before this one writes x.
    read_w(first);
    wait_for_last();
    float sum[TILES][4] = {};
    for (uint32_t step0 = first; step0 < end; step0 += AHEAD) {
uint4 x[2][AHEAD];
        const auto read_x = [&](uint32_t t) {
            const uint32_t token = 8 * t + g;
#pragma unroll
            for (uint32_t i = 0; i < AHEAD; ++i) {
                const uint32_t k = (step0 + i) * K + 8 * q;
                const bool there = token < p.tokens && step0 + i < end && k < p.hidden;
                x[t % 2][i] = there ? *(const uint4*)(p.x + token * p.x_stride + k) : make_uint4(0, 0, 0, 0);
            }
        };
        read_x(0);
#pragma unroll
        for (uint32_t t = 0; t < TILES; ++t) {
            if (8 * t >= p.tokens) break;
            if (t + 1 < TILES) read_x(t + 1);
#pragma unroll
            for (uint32_t i = 0; i < AHEAD; ++i) {
                const uint4 of = x[t % 2][i];
                const uint32_t a[2][2] = {{of.x, of.y}, {of.z, of.w}};
#pragma unroll
                for (uint32_t j = 0; j < 2; ++j) {
                    const uint32_t l[2] = {w[i][0][2 * j], w[i][0][2 * j + 1]}, h[2] = {w[i][1][2 * j], w[i][1][2 * j + 1]};
                    multiply<bf16>(sum[t], l, h, a[j]);
                }
            }
        }
        if (step0 + AHEAD < end) read_w(step0 + AHEAD);
    }
#pragma unroll
    for (uint32_t t = 0; t < TILES; ++t) {
        if (8 * t >= p.tokens) break;
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) of_warp[warp][t][i][lane] = sum[t][i];
    }
    __syncthreads();
    // Neighbours store logits of one token.
    for (uint32_t at = threadIdx.x; at < p.tokens * EXPERTS; at += 32 * WARPS) {
        const uint32_t token = at / EXPERTS, r = at % EXPERTS, expert = expert0 + r;
        if (expert >= p.experts) continue;
        const uint32_t i = token % 2 + r / 8 * 2, of = r % 8 * 4 + token % 8 / 2;
        float all = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < WARPS; ++j) all += of_warp[j][token / 8][i][of];
        p.logits[((uint64_t)split * p.tokens + token) * p.experts + expert] = all;
    }
}

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

// Between the logits and the choice may come a kernel that waits for the logits, and then lets the choice start. So that
// runs beside it, reads what others write past the L1, and waits last, for that kernel to have ended where it has.
__device__ __forceinline__ void begin_choice(const RouteParams& p) {
    let_next_start();
    if (!p.beside) wait_for_last();
}
__device__ __forceinline__ void end_choice(const RouteParams& p) {
    if (p.beside) wait_for_last();
}

extern "C" __global__ void __launch_bounds__(128)
route_choose(const __grid_constant__ RouteParams p) {
    const uint32_t token = blockIdx.x * 4 + threadIdx.x / 32;
    begin_choice(p);
    if (token < p.tokens) choose(p, token);
    end_choice(p);
}
extern "C" __global__ void __launch_bounds__(128)
route_sort(const __grid_constant__ RouteParams p) {
    __shared__ uint4 keys[NEAR / 4];
    const uint32_t routes = p.tokens * p.top_k, expert = blockIdx.x * 4 + threadIdx.x / 32;
    begin();
    if (is_near(p)) {
        for (uint32_t i = threadIdx.x; i < (routes + 3) / 4 * 4; i += 128) number_near(p, keys, i, i < routes ? p.ids[i] : 0);
        __syncthreads();
        sort_near<4>(p, keys, blockIdx.x * 128 + threadIdx.x, gridDim.x * 128);
    } else if (expert <= p.experts) {
        sort_expert(p, expert);
    }
}

// One block lets few tokens choose and sorts their routes, which are near. A warp ranks 32 experts of a token, which go
// down to at most CANDIDATES, of at most TOGETHER tokens; then all warps rank those. Slots are as many as lanes, at most.
constexpr uint32_t TOGETHER = 16, CANDIDATES = 128;
extern "C" __global__ void __launch_bounds__(32 * TOGETHER, 1)
route_choose_and_sort(const __grid_constant__ RouteParams p) {
    constexpr uint32_t THREADS = 32 * TOGETHER, AT_ONCE = 2;
    extern __shared__ float scores[];  // [tokens, experts]
    __shared__ uint4 keys[TOGETHER][CANDIDATES / 4], numbers[THREADS / 4];
    __shared__ uint32_t ids[TOGETHER][CANDIDATES];
    __shared__ int32_t best[TOGETHER][32];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, all = p.tokens * p.experts;
    ((uint32_t*)numbers)[threadIdx.x] = ALL;
    // Below every number's.
    keys[warp][lane] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    begin_choice(p);
#pragma unroll 1
    for (uint32_t first = threadIdx.x; first < all; first += AT_ONCE * THREADS) {
        float logit[AT_ONCE] = {}, of_split[SPLITS][AT_ONCE];
        const float* const from = p.logits + first;
        const bool both = first + THREADS < all;
#pragma unroll
        for (uint32_t i = 0; i < SPLITS; ++i) {
            of_split[i][0] = __ldcg(from + i * all);
            if (both) of_split[i][1] = __ldcg(from + i * all + THREADS);
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; ++j)
#pragma unroll
            for (uint32_t i = 0; i < SPLITS; ++i) logit[j] += of_split[i][j];
        for (uint32_t at = first;; at += THREADS, logit[0] = logit[1]) {
            const uint32_t token = p.by_experts.quotient(at), expert = at - token * p.experts;
            const float s = score(logit[0]);
            const uint32_t key = key_of(s, choice_of(p, token).bias, expert);
            // An equal one of a lower place comes before it; no key is 0.
            uint32_t before = 0;
#pragma unroll 8
            for (uint32_t i = 0; i < 32; ++i) {
                const uint32_t other = __shfl_sync(ALL, key, i);
                before += other > key - (i < lane);
            }
            scores[at] = s;
            if (before < p.top_k) {
                const uint32_t place = expert / 32 * p.top_k + before;
                ((uint32_t*)keys[token])[place] = key, ids[token][place] = expert;
            }
            if (at != first || !both) break;
        }
    }
    __syncthreads();
    // All warps rank what remains, for one alone would be slow at it.
    const uint32_t count = p.experts / 32 * p.top_k;
    for (uint32_t token = 0; token < p.tokens; ++token) {
        const uint32_t* const of_token = (const uint32_t*)keys[token];
        uint32_t others[CANDIDATES / 32];
#pragma unroll
        for (uint32_t j = 0; j < CANDIDATES / 32; ++j) others[j] = of_token[lane + 32 * j];
#pragma unroll 1
        for (uint32_t place = warp; place < count; place += TOGETHER) {
            // Places are in the order of experts.
            const uint32_t key = of_token[place];
            uint32_t before = 0;
#pragma unroll
            for (uint32_t j = 0; j < CANDIDATES / 32; ++j) before += others[j] > key - (lane + 32 * j < place);
            before = __reduce_add_sync(ALL, before);
            if (before < p.top_k) best[token][before] = (int32_t)ids[token][place];
        }
    }
    __syncthreads();
    if (warp < p.tokens) {
        const Choice c = choice_of(p, warp);
        int32_t id = -1;
        float chosen = 0.0f;
        if (lane < p.top_k) id = c.row != nullptr ? c.row[lane] : best[warp][lane];
        if (c.none) id = -1;
        else if (lane < p.top_k) chosen = scores[warp * p.experts + id];
        double sum = 1e-20;
        const double of_lane = chosen;
#pragma unroll 1
        for (uint32_t slot = 0; slot < p.top_k; ++slot) sum += __shfl_sync(ALL, of_lane, slot);
        if (lane < p.top_k) {
            const uint32_t at = warp * p.top_k + lane;
            p.ids[at] = id, p.weights[at] = c.none ? 0.0f : weight_of(p, chosen, sum);
            number_near(p, numbers, at, id);
        }
    }
    __syncthreads();
    sort_near<1>(p, numbers, threadIdx.x, THREADS);
    end_choice(p);
}
