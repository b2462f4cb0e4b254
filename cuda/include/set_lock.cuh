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

// A moment, longer from attempt to attempt and never the same for two warps, so that others get their turn. For the whole warp.
HPS_DEVICE void pause(uint32_t attempt) {
  if (lane_id() == 0) {
    const uint32_t most = 32u << min(attempt, 7u);
    __nanosleep(most / 2 + (dice(blockIdx.x * blockDim.x + threadIdx.x) >> 16) * most / 65536);
  }
  __syncwarp();
}

// Locks both sets of a key, for the whole warp, if that needs no waiting. `version` is the version before, for lane 0 of the first
// set, for lane 1 of the second.
//
// The first attempt takes both at the same time. Others take the lower number first, then the other; who does not get that one
// gives the first back. So nobody waits while holding a lock, and of those that try, one always gets both: whoever holds the
// highest of the locks that others fail to get. (To wait for the second lock while holding the first would do as well, but when
// thousands of warps fill a small table, sets with low numbers would be filled last: keys that have one would find it full, and
// the room that is left would lie where they cannot go. To try both at once again and again would not end: two warps may each get
// another one first, for ever.)
HPS_DEVICE bool try_lock_sets(const HpsSetTable& table, const Place& place, uint32_t attempt, uint32_t& version) {
  bool has_both;
  if (attempt == 0) {
    const bool locks = lane_id() == 0 || (lane_id() == 1 && place.first != place.second);
    const uint32_t set = lane_id() == 0 ? place.first : place.second;
    version = locks ? try_lock_set(table, set) : 0;
    has_both = !__any_sync(kWholeWarp, is_locked(version));
    // Given back unchanged: readers that saw it locked go on waiting, others lose nothing.
    if (!has_both && locks && !is_locked(version)) atomicExch(version_of(table, set), version);
  } else {
    const uint32_t low_set = min(place.first, place.second);
    const uint32_t high_set = max(place.first, place.second);
    uint32_t low = 1;
    uint32_t high = 1;
    if (lane_id() == 0 && !is_locked(load_relaxed(version_of(table, low_set)))) {
      low = try_lock_set(table, low_set);
      if (!is_locked(low)) {
        high = low_set == high_set ? 0 : try_lock_set(table, high_set);
        if (is_locked(high)) atomicExch(version_of(table, low_set), low);
      }
    }
    low = __shfl_sync(kWholeWarp, low, 0);
    high = __shfl_sync(kWholeWarp, high, 0);
    has_both = !is_locked(low) && !is_locked(high);
    version = (lane_id() == 0) == (place.first <= place.second) ? low : high;
  }
  fence();
  __syncwarp();
  return has_both;
}

// The same, again until it has them.
HPS_DEVICE uint32_t lock_sets(const HpsSetTable& table, const Place& place) {
  uint32_t version;
  for (uint32_t attempt = 0; !try_lock_sets(table, place, attempt, version); ++attempt) pause(attempt);
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
