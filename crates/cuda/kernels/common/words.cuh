// Words that lanes trade.
#pragma once
#include <cuda/std/cstdint>

// Of 16 words that four lanes have, four each: the i-th of the q-th lane becomes the q-th of the i-th.
__device__ __forceinline__ void turn_words(uint32_t (&w)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    const uint32_t a = __shfl_xor_sync(~0u, odd ? w[0] : w[1], 1), b = __shfl_xor_sync(~0u, odd ? w[2] : w[3], 1);
    const uint32_t low[2] = {odd ? a : w[0], odd ? w[1] : a}, high[2] = {odd ? b : w[2], odd ? w[3] : b};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t other = __shfl_xor_sync(~0u, upper ? low[i] : high[i], 2);
        w[i] = upper ? other : low[i], w[2 + i] = upper ? high[i] : other;
    }
}
