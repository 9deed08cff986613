// What a device can do at most, to be set beside what kernels do. Reading and writing as an activation does
// is `copy_16bytes` of activation.cu.
#include "../common/memory.cuh"

struct LimitParams {
    const void* from;
    void* to;
    uint32_t vectors;  // of 16 bytes, a multiple of what all threads read at once
    uint32_t rounds;   // of arithmetic
};
TWIN_SIZE(LimitParams, 24);
TWIN_FIELD(LimitParams, from, 0);
TWIN_FIELD(LimitParams, to, 8);
TWIN_FIELD(LimitParams, vectors, 16);
TWIN_FIELD(LimitParams, rounds, 20);

// Vectors that a thread has on their way at once.
constexpr uint32_t READS = 8;
// Sums of a thread that do not wait for one another.
constexpr int SUMS = 16;

// Reads. What was read decides whether anything is written, so that no read can be left out.
extern "C" __global__ void __launch_bounds__(512) limit_read(const __grid_constant__ LimitParams p) {
    const uint32_t threads = gridDim.x * blockDim.x;
    const uint4* from = (const uint4*)p.from + blockIdx.x * blockDim.x + threadIdx.x;
    uint4 all = make_uint4(0, 0, 0, 0);
    for (uint32_t done = 0; done < p.vectors; done += READS * threads) {
        uint4 x[READS];
#pragma unroll
        for (uint32_t i = 0; i < READS; ++i) x[i] = from[done + i * threads];
#pragma unroll
        for (uint32_t i = 0; i < READS; ++i) {
            all = make_uint4(all.x ^ x[i].x, all.y ^ x[i].y, all.z ^ x[i].z, all.w ^ x[i].w);
        }
    }
    if (all.x == 1 && all.y == 2 && all.z == 3 && all.w == 4) *(uint4*)p.to = all;
}

// Multiplies and adds.
extern "C" __global__ void __launch_bounds__(512) limit_multiply_add(const __grid_constant__ LimitParams p) {
    const float factor = ((const float*)p.from)[0], term = ((const float*)p.from)[1];
    float sums[SUMS];
#pragma unroll
    for (int i = 0; i < SUMS; ++i) sums[i] = (float)(threadIdx.x + i);
    for (uint32_t round = 0; round < p.rounds; ++round) {
#pragma unroll
        for (int again = 0; again < 8; ++again) {
#pragma unroll
            for (int i = 0; i < SUMS; ++i) sums[i] = fmaf(sums[i], factor, term);
        }
    }
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < SUMS; ++i) all += sums[i];
    if (all == 1.0f) *(float*)p.to = all;
}
