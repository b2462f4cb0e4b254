// Locks of writers on sets: a set's version is odd while it is locked. See set_table.cuh for who may do what.
#pragma once
#include "set_table.cuh"

// The version before, if the set was locked by this call; an odd number if somebody else holds it.
HPS_DEVICE uint32_t try_lock_set(const HpsSetTable& table, uint32_t set) { return atomicOr(version_of(table, set), 1u); }

HPS_DEVICE bool is_locked(uint32_t version) { return (version & 1u) != 0; }

// After a fence: what was changed under the lock is seen before the new version.
HPS_DEVICE void unlock_set(const HpsSetTable& table, uint32_t set, uint32_t version) {
  atomicExch(version_of(table, set), version + 2);
}

// Waits until the set is locked by this call. Returns the version before.
HPS_DEVICE uint32_t lock_set(const HpsSetTable& table, uint32_t set) {
  for (;;) {
    if (is_locked(load_relaxed(version_of(table, set)))) continue;
    const uint32_t version = try_lock_set(table, set);
    if (!is_locked(version)) return version;
  }
}

// Locks both sets of a key, for the whole warp. Returns the version before to lane 0 for the first set, to lane 1 for the
// second.
//
// Both at the same time, if nobody has them. Else what was had is given back, and the sets are waited for, the lower number
// first: who holds a lock and waits only waits for a higher one, so somebody always goes on.
HPS_DEVICE uint32_t lock_sets(const HpsSetTable& table, const Place& place) {
  const bool locks = lane_id() == 0 || (lane_id() == 1 && place.first != place.second);
  const uint32_t set = lane_id() == 0 ? place.first : place.second;
  uint32_t version = 0;
  if (locks) version = try_lock_set(table, set);
  if (__any_sync(kWholeWarp, locks && is_locked(version))) {
    // Unchanged: readers that saw it locked go on waiting, others lose nothing.
    if (locks && !is_locked(version)) atomicExch(version_of(table, set), version);
    __syncwarp();
    uint32_t lower = 0;
    uint32_t higher = 0;
    if (lane_id() == 0) {
      lower = lock_set(table, min(place.first, place.second));
      if (place.first != place.second) higher = lock_set(table, max(place.first, place.second));
    }
    lower = __shfl_sync(kWholeWarp, lower, 0);
    higher = __shfl_sync(kWholeWarp, higher, 0);
    version = (lane_id() == 0) == (place.first <= place.second) ? lower : higher;
  }
  fence();
  __syncwarp();
  return version;
}

HPS_DEVICE void unlock_sets(const HpsSetTable& table, const Place& place, uint32_t version) {
  fence();
  __syncwarp();
  fence();
  if (lane_id() == 0) unlock_set(table, place.first, version);
  if (lane_id() == 1 && place.first != place.second) unlock_set(table, place.second, version);
}

// Brackets around all changes of a block: readers look whether anybody was at work.
HPS_DEVICE void begin_writing(const HpsSetTable& table) {
  if (threadIdx.x == 0) {
    atomicAdd(&pointer<HpsWriters>(table.writers)->begun, 1u);
    fence();
  }
  __syncthreads();
}

HPS_DEVICE void end_writing(const HpsSetTable& table) {
  __syncthreads();
  if (threadIdx.x == 0) {
    fence();
    atomicAdd(&pointer<HpsWriters>(table.writers)->ended, 1u);
  }
}
