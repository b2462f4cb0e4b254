// Memory accesses by their meaning, in the words of the PTX memory model. Nothing here knows what is stored.
#pragma once
#include "abi.h"

#define HPS_DEVICE static __device__ __forceinline__

constexpr uint32_t kWholeWarp = 0xffffffffu;

HPS_DEVICE uint32_t lane_id() { return threadIdx.x & 31u; }

template <typename T>
HPS_DEVICE T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(address);
}

// CUDA's own function takes another name for the same type.
HPS_DEVICE uint64_t atomic_add(uint64_t* p, uint64_t v) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}

// What follows is in the words of PTX; tests that run kernels on the host bring their own.
#ifndef HPS_EMULATED

// A number that differs from warp to warp, lane to lane and call to call.
HPS_DEVICE uint32_t dice(uint32_t salt) {
  uint32_t clock;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(clock));
  return (clock + salt * 0x9e3779b1u) * 0x85ebca77u;
}

// --- ordering ---------------------------------------------------------------------------------------------------------------
HPS_DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
HPS_DEVICE void fence_system() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

HPS_DEVICE uint32_t load_acquire(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
HPS_DEVICE uint64_t load_acquire(const uint64_t* p) {
  uint64_t v;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
HPS_DEVICE uint32_t load_relaxed(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
HPS_DEVICE uint64_t load_relaxed(const uint64_t* p) {
  uint64_t v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
HPS_DEVICE uint16_t load_relaxed(const uint16_t* p) {
  uint16_t v;
  asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
  return v;
}
HPS_DEVICE void store_relaxed(uint64_t* p, uint64_t v) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
HPS_DEVICE void store_release_system(uint64_t* p, uint64_t v) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}

// --- data -------------------------------------------------------------------------------------------------------------------
// Read once per lookup from a random place: the first-level cache has no use for it.
HPS_DEVICE uint4 load_once(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
HPS_DEVICE uint32_t load_once(const uint32_t* p) {
  uint32_t v;
  asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
HPS_DEVICE uint64_t load_once(const uint64_t* p) {
  uint64_t v;
  asm volatile("ld.global.L1::no_allocate.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}

// The same with a hint to the second-level cache: which lines it gives up first. To say nothing, or evict_unchanged, is not the same
// as evict_normal: with evict_normal for rows, a million keys that are asked for again and again (Zipf, dim 32) took 125 instead of
// 82 us on an H100.
struct Hint {
  uint64_t policy;
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
HPS_DEVICE Hint evict_first() {
  Hint hint;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(hint.policy));
  return hint;
}
HPS_DEVICE Hint evict_last_if(bool is_last) {
  uint64_t last, unchanged;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(last));
  asm("createpolicy.fractional.L2::evict_unchanged.b64 %0, 1.0;" : "=l"(unchanged));
  return Hint{is_last ? last : unchanged};
}
HPS_DEVICE uint4 load_once(const uint4* p, Hint hint) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p), "l"(hint.policy)
               : "memory");
  return v;
}
HPS_DEVICE uint32_t load_once(const uint32_t* p, Hint hint) {
  uint32_t v;
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.u32 %0, [%1], %2;" : "=r"(v) : "l"(p), "l"(hint.policy) : "memory");
  return v;
}
HPS_DEVICE uint64_t load_once(const uint64_t* p, Hint hint) {
  uint64_t v;
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.u64 %0, [%1], %2;" : "=l"(v) : "l"(p), "l"(hint.policy) : "memory");
  return v;
}
HPS_DEVICE uint64_t load_relaxed(const uint64_t* p, Hint hint) {
  uint64_t v;
  asm volatile("ld.relaxed.gpu.global.L2::cache_hint.u64 %0, [%1], %2;" : "=l"(v) : "l"(p), "l"(hint.policy) : "memory");
  return v;
}
#else
HPS_DEVICE Hint evict_first() { return Hint{0}; }
HPS_DEVICE Hint evict_last_if(bool) { return Hint{0}; }
template <typename T>
HPS_DEVICE T load_once(const T* p, Hint) {
  return load_once(p);
}
HPS_DEVICE uint64_t load_relaxed(const uint64_t* p, Hint) { return load_relaxed(p); }
#endif
// What a kernel reads passes through: its lines are given up first. Else nothing is said.
template <bool kPasses, typename T>
HPS_DEVICE T load_passing(const T* p) {
  if constexpr (kPasses) {
    return load_once(p, evict_first());
  } else {
    return load_once(p);
  }
}

// Written once and not read again by us: should not push rows and tags out of the second-level cache.
HPS_DEVICE void store_streaming(uint4* p, const uint4& v) { __stcs(p, v); }
HPS_DEVICE void store_streaming(uint32_t* p, uint32_t v) { __stcs(p, v); }

#endif  // HPS_EMULATED
