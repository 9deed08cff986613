// The router: which experts each token goes to, with which weight, and the routes sorted by expert.
//
// ## Method
// 1. Logits of few tokens in bf16: a block to an expert and eight tokens, sums in f32. Others are a matmul.
// 2. A warp lets a token choose. In each round every lane looks among its own experts for the best that comes after
//    the last one chosen, in descending order of the biased score and ascending order of the expert.
// 3. Routes are sorted without a word between blocks: a warp to an expert counts the routes to lower experts, which
//    is where its own rows begin, and writes those in the routes' order. Routes to no expert go to a last expert of
//    none, whose rows stay empty.
// 4. Of few tokens one block does both.
#include "../common/memory.cuh"

// The twin of `RouteParams` in src/launch/params.rs.
struct RouteParams {
    const bf16* x;             // [tokens, hidden]
    const bf16* w;             // [experts, hidden]
    float* logits;             // [tokens, experts]; scores when a token has chosen
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
    Divisor by_top_k;
    uint32_t vocabulary;
    uint32_t normalize;
    float scale;
};
TWIN_SIZE(RouteParams, 160);
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
TWIN_FIELD(RouteParams, vocabulary, 144);
TWIN_FIELD(RouteParams, normalize, 148);
TWIN_FIELD(RouteParams, scale, 152);

constexpr uint32_t ALL = 0xffffffffu;

// Logits of one expert and of TOKENS tokens, whose rows are whole vectors.
extern "C" __global__ void __launch_bounds__(128)
route_logits(const __grid_constant__ RouteParams p) {
    constexpr uint32_t THREADS = 128, TOKENS = 8;
    constexpr int N = 8;
    __shared__ float of_warp[THREADS / 32][TOKENS];
    const uint32_t expert = blockIdx.x, token0 = blockIdx.y * TOKENS;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t tokens = min(TOKENS, p.tokens - token0);
    let_next_start();
    float sum[TOKENS] = {};
    const auto read_w = [&](uint32_t k) {
        return load<bf16, N>(p.w, (uint64_t)expert * p.hidden + min(k, p.hidden - N));
    };
    // The first of w come while the kernel before this one writes x, the next ones while these are multiplied.
    Vector<bf16, N> next = read_w(threadIdx.x * N);
    wait_for_last();
    for (uint32_t k = threadIdx.x * N; k < p.hidden; k += THREADS * N) {
        float w[N], x[N];
        widen_all(next, w);
        next = read_w(k + THREADS * N);
#pragma unroll
        for (uint32_t t = 0; t < TOKENS; ++t) {
            if (t >= tokens) break;
            widen_all(load<bf16, N>(p.x, (token0 + t) * p.x_stride + k), x);
#pragma unroll
            for (int i = 0; i < N; ++i) sum[t] = fmaf(x[i], w[i], sum[t]);
        }
    }
#pragma unroll
    for (uint32_t t = 0; t < TOKENS; ++t) {
#pragma unroll
        for (uint32_t step = 16; step > 0; step /= 2) sum[t] += __shfl_xor_sync(ALL, sum[t], step);
        if (lane == 0) of_warp[warp][t] = sum[t];
    }
    __syncthreads();
    const uint32_t t = threadIdx.x;
    if (t >= tokens) return;
    float all = 0.0f;
    for (uint32_t i = 0; i < THREADS / 32; ++i) all += of_warp[i][t];
    p.logits[(uint64_t)(token0 + t) * p.experts + expert] = all;
}

// sqrt(softplus(l)): log1p keeps what log(1 + e) loses below -16.6, and the comparison takes no NaN to 0. From -20 on
// down it is exp(l / 2) to the last bit, which no subnormal exp(l) comes between.
__device__ __forceinline__ float score(float l) {
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

// Experts whose places in the order a warp keeps in registers, so many a lane.
constexpr uint32_t KEPT = 16;

// The k best experts of a warp's token, by score and then by number. `key` gives an expert's place in the order.
template <typename F> __device__ __forceinline__ void best(const RouteParams& p, const F& key, int32_t* ids) {
    const uint32_t lane = threadIdx.x % 32;
    if (p.experts <= 32 * KEPT) {
        // 0 is what has been chosen, and what is no expert: every number is above it.
        uint32_t keys[KEPT];
#pragma unroll
        for (uint32_t j = 0; j < KEPT; ++j) keys[j] = lane + 32 * j < p.experts ? key(lane + 32 * j) : 0;
        for (uint32_t i = 0; i < p.top_k; ++i) {
            uint32_t most = 0, place = 0;
#pragma unroll
            for (uint32_t j = 0; j < KEPT; ++j) {
                if (keys[j] > most) most = keys[j], place = j;
            }
            const uint32_t top = __reduce_max_sync(ALL, most);
            const uint32_t id = __reduce_min_sync(ALL, most == top ? lane + 32 * place : ALL);
            if (lane == 0) ids[i] = (int32_t)id;
#pragma unroll
            for (uint32_t j = 0; j < KEPT; ++j) {
                if (id == lane + 32 * j) keys[j] = 0;
            }
        }
        return;
    }
    // What was chosen last; before the first all come after it.
    uint32_t last_key = ALL;
    int32_t last = -1;
    for (uint32_t i = 0; i < p.top_k; ++i) {
        uint32_t most = 0, place = ALL;
        for (uint32_t e = lane; e < p.experts; e += 32) {
            const uint32_t of = key(e);
            const bool after = of < last_key || (of == last_key && (int32_t)e > last);
            if (after && of > most) most = of, place = e;
        }
        last_key = __reduce_max_sync(ALL, most);
        last = (int32_t)__reduce_min_sync(ALL, most == last_key ? place : ALL);
        if (lane == 0) ids[i] = last;
    }
}

// A warp lets a token choose.
__device__ __forceinline__ void choose(const RouteParams& p, uint32_t token) {
    const uint32_t lane = threadIdx.x % 32;
    float* const scores = p.logits + (uint64_t)token * p.experts;
    int32_t* const ids = p.ids + (uint64_t)token * p.top_k;
    float* const weights = p.weights + (uint64_t)token * p.top_k;
    const bool image = p.bias_vl != nullptr && p.image != nullptr && p.image[token] != 0;
    const bool hashes = p.table != nullptr && !image;
    bool none = p.padding != nullptr && p.padding[token] != 0;
    uint32_t of_table = 0;
    if (hashes) {
        of_table = (uint32_t)p.token_ids[token];
        none |= of_table >= p.vocabulary;
    }
    if (none) {
        for (uint32_t i = lane; i < p.top_k; i += 32) ids[i] = -1, weights[i] = 0.0f;
        return;
    }
    for (uint32_t e = lane; e < p.experts; e += 32) scores[e] = score(scores[e]);
    if (hashes) {
        const int32_t* const row = p.table + (uint64_t)of_table * p.top_k;
        for (uint32_t i = lane; i < p.top_k; i += 32) ids[i] = row[i];
    } else {
        const float* const bias = image ? p.bias_vl : p.bias;
        best(p, [&](uint32_t e) { return ordered(scores[e] + (bias != nullptr ? bias[e] : 0.0f)); }, ids);
    }
    __syncwarp();
    double sum = 1e-20;
    for (uint32_t first = 0; first < p.top_k; first += 32) {
        const uint32_t count = min(32u, p.top_k - first);
        const float s = lane < count ? scores[ids[first + lane]] : 0.0f;
        for (uint32_t i = 0; i < count; ++i) sum += __shfl_sync(ALL, s, i);
    }
    for (uint32_t i = lane; i < p.top_k; i += 32) {
        const double s = scores[ids[i]];
        weights[i] = (float)((p.normalize ? s / sum : s) * p.scale);
    }
}

// Of an id that is no expert's the last, which stands for none.
__device__ __forceinline__ uint32_t expert_of(const RouteParams& p, int32_t id) {
    return min((uint32_t)id, p.experts);
}

// A warp finds the rows of an expert, or of none, in the ids of all routes.
__device__ __forceinline__ void sort_expert(const RouteParams& p, const int32_t* ids, uint32_t expert) {
    const uint32_t lane = threadIdx.x % 32, routes = p.tokens * p.top_k;
    uint32_t lower = 0;
    for (uint32_t r = lane; r < routes; r += 32) lower += expert_of(p, ids[r]) < expert;
    uint32_t row = __reduce_add_sync(ALL, lower);
    if (lane == 0) p.offsets[expert] = row;
    for (uint32_t first = 0; first < routes; first += 32) {
        const uint32_t route = first + lane;
        const bool mine = route < routes && expert_of(p, ids[route]) == expert;
        const uint32_t all = __ballot_sync(ALL, mine);
        if (mine) {
            const uint32_t at = row + __popc(all & ((1u << lane) - 1));
            const uint32_t token = p.by_top_k.quotient(route), slot = route - token * p.top_k;
            // Of the token's rows, how many come before.
            const int32_t* const of_token = ids + (uint64_t)token * p.top_k;
            uint32_t before = 0;
            for (uint32_t i = 0; i < p.top_k; ++i) {
                const uint32_t other = expert_of(p, of_token[i]);
                before += other < expert || (other == expert && i < slot);
            }
            const bool none = expert == p.experts;
            p.sorted[at] = none ? -1 : (int32_t)route;
            p.rows[(uint64_t)token * p.top_k + before] = none ? -1 : (int32_t)at;
        }
        row += __popc(all);
    }
}

extern "C" __global__ void __launch_bounds__(128)
route_choose(const __grid_constant__ RouteParams p) {
    const uint32_t token = blockIdx.x * 4 + threadIdx.x / 32;
    begin();
    if (token < p.tokens) choose(p, token);
}
extern "C" __global__ void __launch_bounds__(128)
route_sort(const __grid_constant__ RouteParams p) {
    const uint32_t expert = blockIdx.x * 4 + threadIdx.x / 32;
    begin();
    if (expert <= p.experts) sort_expert(p, p.ids, expert);
}
extern "C" __global__ void __launch_bounds__(1024)
route_choose_and_sort(const __grid_constant__ RouteParams p) {
    const uint32_t warp = threadIdx.x / 32;
    begin();
    for (uint32_t token = warp; token < p.tokens; token += 32) choose(p, token);
    __syncthreads();
    // Every expert looks at all ids: in shared memory, if they have room there.
    __shared__ int32_t near[1024];
    const uint32_t routes = p.tokens * p.top_k;
    const bool fits = routes <= 1024;
    if (fits && threadIdx.x < routes) near[threadIdx.x] = p.ids[threadIdx.x];
    __syncthreads();
    for (uint32_t expert = warp; expert <= p.experts; expert += 32) sort_expert(p, fits ? near : p.ids, expert);
}
