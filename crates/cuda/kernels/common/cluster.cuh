// Blocks of a cluster, and copies by tensor maps: for Hopper.
#pragma once
#include "async.cuh"

struct alignas(64) TensorMap {
    uint64_t words[16];
};

// All threads of the cluster, each of which sees what the others have written.
__device__ __forceinline__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The same without an order of memory: a release waits for all accesses on their way.
__device__ __forceinline__ void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }
__device__ __forceinline__ void meet_cluster() {
    arrive_at_cluster();
    wait_for_cluster();
}
// Four sums to another block of the cluster, whose barrier counts their bytes.
__device__ __forceinline__ void send(uint32_t to, float4 v, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
        ::"r"(to), "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(__float_as_uint(v.z)),
          "r"(__float_as_uint(v.w)), "r"(barrier) : "memory");
}
// The same of four that wgmma has just added to: copied to other registers they would make it wait after each product.
__device__ __forceinline__ void send(uint32_t to, float a, float b, float c, float d, uint32_t barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];"
        ::"r"(to), "f"(a), "f"(b), "f"(c), "f"(d), "r"(barrier) : "memory");
}
// 64 of k of so many tokens as the map has; of codes 128.
__device__ __forceinline__ void tensor_copy(uint32_t to, const TensorMap& map, uint32_t k, uint32_t token, uint32_t barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        ::"r"(to), "l"(&map), "r"(k), "r"(token), "r"(barrier) : "memory");
}
// The same to each block of `blocks`, a bit each, where each one's barrier at this place is told.
__device__ __forceinline__ void tensor_copy_to_blocks(
    uint32_t to, const TensorMap& map, uint32_t k, uint32_t token, uint32_t barrier, uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%2, %3}], [%4], %5;"
        ::"r"(to), "l"(&map), "r"(k), "r"(token), "r"(barrier), "h"(blocks) : "memory");
}
// Arrives at a barrier of any block, whose address `in_block` has, by a thread that has read and written nothing for the
// other one: a release to a cluster would wait for all of its accesses.
__device__ __forceinline__ void arrive_in_block(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// A place in a ring of stages.
struct RingPlace {
    uint32_t stage = 0, parity = 0;
    __device__ __forceinline__ void advance(uint32_t stages, uint32_t by = 1) {
        stage += by;
        if (stage >= stages) stage -= stages, parity ^= 1;
    }
};
