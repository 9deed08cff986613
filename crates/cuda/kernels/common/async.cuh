// Copies that arrive by themselves, and the barriers in shared memory that tell of them: from Hopper on.
#pragma once
#include <cuda/std/cstdint>

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
__device__ __forceinline__ void init_barrier(uint32_t barrier, uint32_t arrivals = 1) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and lets the barrier's phase end only when so many bytes have come.
__device__ __forceinline__ void expect_bytes(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// As createpolicy.fractional.L2::evict_first gives it.
constexpr uint64_t EVICT_FIRST = 0x12f0000000000000;
// Of weights, which come once: the L2 lets go of them first, and keeps the kernels' code and their small operands. What
// has been thrown out comes from memory, an instruction line after another.
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(EVICT_FIRST) : "memory");
}
// Waits for the end of the phase of this parity; CLUSTER: to see what another block of the cluster wrote.
template <bool CLUSTER> __device__ __forceinline__ void wait_barrier(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    do {
        if constexpr (CLUSTER)
            asm volatile("{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
        else
            asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    } while (!done);
}
// The place of this block's shared address in another block of the cluster.
__device__ __forceinline__ uint32_t in_block(uint32_t address, uint32_t rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
