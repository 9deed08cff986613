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
#include "sort.cuh"

// The blocks that share k, and the experts of each, LOGITS_SPLITS and LOGITS_EXPERTS in src/moe/route/plan.rs.
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
