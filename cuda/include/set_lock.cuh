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

// A moment, longer from attempt to attempt and never the same for two warps, so that others get their turn.
HPS_DEVICE void pause(uint32_t attempt) {
  const uint32_t most = 32u << min(attempt, 7u);
  __nanosleep(most / 2 + (dice(blockIdx.x * blockDim.x + threadIdx.x) >> 16) * most / 65536);
}

// Locks both sets of a key at the same time, if nobody has them, for the whole warp. `version` is the version before, for lane 0 of
// the first set, for lane 1 of the second.
HPS_DEVICE bool try_lock_sets(const HpsSetTable& table, const Place& place, uint32_t& version) {
  const bool locks = lane_id() == 0 || (lane_id() == 1 && place.first != place.second);
  version = 0;
  if (locks) version = try_lock_set(table, lane_id() == 0 ? place.first : place.second);
  if (__any_sync(kWholeWarp, locks && is_locked(version))) {
    // Given back unchanged: readers that saw it locked go on waiting, others lose nothing.
    if (locks && !is_locked(version)) {
      atomicExch(version_of(table, lane_id() == 0 ? place.first : place.second), version);
    }
    __syncwarp();
    return false;
  }
  fence();
  __syncwarp();
  return true;
}

// Locks both sets of a key, for the whole warp. Returns the version before, as try_lock_sets.
//
// Both at the same time, if nobody has them. Else the lower number first, then the other; who does not get that one gives the
// first back and comes again. So nobody waits while holding a lock, and of those that try, one always goes on: whoever holds
// the highest of the locks that others fail to get. (To wait for the second lock while holding the first would do as well, but
// when thousands of warps fill a small table, sets with low numbers would be filled last: keys that have one would find it
// full, and the room that is left would lie where they cannot go. To try both at once again and again would not end: two warps
// may each get another one first, for ever.)
HPS_DEVICE uint32_t lock_sets(const HpsSetTable& table, const Place& place) {
  uint32_t version;
  if (try_lock_sets(table, place, version)) return version;
  const uint32_t low_set = min(place.first, place.second);
  const uint32_t high_set = max(place.first, place.second);
  uint32_t low = 0;
  uint32_t high = 0;
  if (lane_id() == 0) {
    for (uint32_t attempt = 0;; ++attempt) {
      if (!is_locked(load_relaxed(version_of(table, low_set)))) {
        low = try_lock_set(table, low_set);
        if (!is_locked(low)) {
          if (low_set == high_set) break;
          high = try_lock_set(table, high_set);
          if (!is_locked(high)) break;
          atomicExch(version_of(table, low_set), low);
        }
      }
      pause(attempt);
    }
  }
  low = __shfl_sync(kWholeWarp, low, 0);
  high = __shfl_sync(kWholeWarp, high, 0);
  version = (lane_id() == 0) == (place.first <= place.second) ? low : high;
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
