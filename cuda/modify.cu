// Changes a table: adds, overwrites and removes rows. One warp a key; blocks take keys in turns.
//
// Launches on one table follow each other on one stream; lookups may run at any time (set_table.cuh). Lanes 0 to 15 of a warp
// look at the slots of the key's first set, lanes 16 to 31 at those of its second.
//
// Who is evicted: a row with the fewest marks among both sets, chosen at random. A row that was used (one mark) only goes with
// the chance `evict_proven`, so that keys which are asked for once do not push out those in use. A row in steady use (both marks)
// does not go: if all rows of both sets are, with that chance, and with the chance `forget` whatever the marks, one row loses a
// mark, which lookups give back if it is still used. So rows that were used long ago become like new ones, and the hottest stay.
#include "include/marks.cuh"
#include "include/set_lock.cuh"

namespace {

// The first part of a row, in registers: 16, 8 or 4 bytes a lane. Loaded before the locks are taken, as rows may come from host memory.
struct RowStart {
  uint4 wide;
  uint64_t word;
  uint32_t narrow;
};

HPS_DEVICE RowStart load_start(const char* from, uint32_t row_bytes) {
  RowStart start{};
  if (row_bytes % 16 == 0) {
    if (lane_id() < row_bytes / 16) start.wide = load_once(reinterpret_cast<const uint4*>(from) + lane_id());
  } else if (row_bytes == 8) {
    if (lane_id() == 0) start.word = load_once(reinterpret_cast<const uint64_t*>(from));
  } else {
    if (lane_id() < row_bytes / 4) start.narrow = load_once(reinterpret_cast<const uint32_t*>(from) + lane_id());
  }
  return start;
}

// Writes a row whose start is at hand; the rest follows from memory. A row of 8 bytes may be an address, which readers follow
// at once: it is written whole.
HPS_DEVICE void store_row(char* to, const char* from, const RowStart& start, uint32_t row_bytes) {
  if (row_bytes % 16 == 0) {
    uint4* out = reinterpret_cast<uint4*>(to);
    if (lane_id() < row_bytes / 16) out[lane_id()] = start.wide;
    for (uint32_t i = lane_id() + 32; i < row_bytes / 16; i += 32)
      out[i] = load_once(reinterpret_cast<const uint4*>(from) + i);
  } else if (row_bytes == 8) {
    if (lane_id() == 0) store_relaxed(reinterpret_cast<uint64_t*>(to), start.word);
  } else {
    uint32_t* out = reinterpret_cast<uint32_t*>(to);
    if (lane_id() < row_bytes / 4) out[lane_id()] = start.narrow;
    for (uint32_t i = lane_id() + 32; i < row_bytes / 4; i += 32) {
      out[i] = load_once(reinterpret_cast<const uint32_t*>(from) + i);
    }
  }
}

HPS_DEVICE uint32_t load_tag(const HpsSetTable& table, uint32_t slot) {
  return load_relaxed(pointer<const uint16_t>(table.tags) + slot);
}

// What a lane sees: one slot of the key's two sets.
struct Slot {
  uint32_t slot;
  uint32_t tag;  // 0: empty
  uint32_t mark;
  bool is_there;  // false for the second set's lanes if both sets are one
};

HPS_DEVICE Slot look(const HpsSetTable& table, const Place& place) {
  const bool is_second = lane_id() >= HPS_WAYS;
  Slot mine;
  mine.slot = (is_second ? place.second : place.first) * HPS_WAYS + lane_id() % HPS_WAYS;
  mine.is_there = !(is_second && place.first == place.second);
  mine.tag = mine.is_there ? load_tag(table, mine.slot) : 0;
  mine.mark = mark_of(load_relaxed(pointer<const uint32_t>(table.marks) + mine.slot / HPS_WAYS), mine.slot % HPS_WAYS);
  return mine;
}

template <int kMode>
HPS_DEVICE bool holds(const HpsSetTable& table, const Place& place, const Slot& mine, uint64_t key) {
  const uint32_t wanted = lane_id() < HPS_WAYS ? place.tag_first : place.tag_second;
  if (!mine.is_there || mine.tag != wanted) return false;
  return kMode == HPS_TAGS_EXACT || load_relaxed(pointer<const uint64_t>(table.keys) + mine.slot) == key;
}

HPS_DEVICE void set_mark(const HpsSetTable& table, uint32_t slot, uint32_t mark) {
  uint32_t* marks = pointer<uint32_t>(table.marks) + slot / HPS_WAYS;
  const uint32_t shift = HPS_MARK_BITS * (slot % HPS_WAYS);
  const uint32_t old = load_relaxed(marks) >> shift & 3u;
  if (old != mark) atomicXor(marks, (old ^ mark) << shift);
}

// Fills a slot that is free. By the whole warp; `slot` is one of the key's two sets.
template <int kMode>
HPS_DEVICE void fill(const HpsSetTable& table, const Place& place, uint64_t key, uint32_t slot, uint32_t mark) {
  if (lane_id() == 0) {
    // If both sets are one, its lanes are those of the first.
    const bool is_first = slot / HPS_WAYS == place.first;
    pointer<uint16_t>(table.tags)[slot] = static_cast<uint16_t>(is_first ? place.tag_first : place.tag_second);
    if (kMode == HPS_TAGS_HASHED) pointer<uint64_t>(table.keys)[slot] = key;
    set_mark(table, slot, mark);
  }
}

// Free slots from which on the first set is taken without looking at the second. A key in its first set is found with one
// access; but sets that are filled one after the other leave no room in the end. With 6, four keys of five are in their first
// set at a load of 95 %, and of hundreds of millions of keys none finds both sets and all ways out of them full (simulated).
constexpr int kPlenty = 6;

// The lane of a free slot, or -1.
HPS_DEVICE int free_lane(const Slot& mine) {
  const uint32_t free = __ballot_sync(kWholeWarp, mine.is_there && mine.tag == 0);
  const uint32_t in_first = free & 0xffffu;
  const uint32_t in_second = free >> HPS_WAYS;
  const bool takes_first = __popc(in_first) > kPlenty || __popc(in_first) >= __popc(in_second);
  if (takes_first) return __ffs(static_cast<int>(in_first)) - 1;
  return HPS_WAYS + __ffs(static_cast<int>(in_second)) - 1;
}

// A lane's row on its way to its other set.
struct Mover {
  uint64_t key;
  Place place;
  uint32_t other;
  bool can_move;  // not into its own set, nor into those of the new key: that makes no room
};

template <int kMode>
HPS_DEVICE Mover mover_of(const HpsSetTable& table, const Slot& mine, const Place& of_new) {
  Mover m{};
  if (mine.is_there && mine.tag != 0) {
    const uint32_t set = mine.slot / HPS_WAYS;
    m.key = key_of<kMode>(table, set, mine.slot % HPS_WAYS, mine.tag);
    m.place = place_of<kMode>(table, m.key);
    m.other = m.place.first == set ? m.place.second : m.place.first;
    m.can_move = m.other != set && m.other != of_new.first && m.other != of_new.second;
  }
  return m;
}

// Locks a further set if that needs no waiting. For the whole warp; returns the version before, odd if others have the set.
HPS_DEVICE uint32_t try_lock_further(const HpsSetTable& table, uint32_t set) {
  uint32_t version = 0;
  if (lane_id() == 0) {
    version = try_lock_set(table, set);
    fence();
  }
  __syncwarp();
  return __shfl_sync(kWholeWarp, version, 0);
}

HPS_DEVICE void unlock_further(const HpsSetTable& table, uint32_t set, uint32_t version) {
  fence();
  __syncwarp();
  fence();
  if (lane_id() == 0) unlock_set(table, set, version);
}

// Moves the row of a lane to a free slot of its other set; both sets are locked.
template <int kMode>
HPS_DEVICE void move_row(const HpsModify& p, const Slot& mine, const Mover& mover, int lane, uint32_t to) {
  const HpsSetTable& table = p.table;
  const uint32_t from = __shfl_sync(kWholeWarp, mine.slot, lane);
  const char* row = row_of(table, from, p.row_bytes);
  store_row(const_cast<char*>(row_of(table, to, p.row_bytes)), row, load_start(row, p.row_bytes), p.row_bytes);
  if (lane_id() == static_cast<uint32_t>(lane)) {
    const bool goes_first = mover.place.first == to / HPS_WAYS;
    pointer<uint16_t>(table.tags)[to] = static_cast<uint16_t>(goes_first ? mover.place.tag_first : mover.place.tag_second);
    if (kMode == HPS_TAGS_HASHED) pointer<uint64_t>(table.keys)[to] = mover.key;
    const uint32_t marks = load_relaxed(pointer<const uint32_t>(table.marks) + from / HPS_WAYS);
    set_mark(table, to, mark_of(marks, from % HPS_WAYS));
    pointer<uint16_t>(table.tags)[from] = 0;
  }
  __syncwarp();
}

// Makes room by moving one of the rows that lanes hold to its other set; their sets are locked. kSteps 1: to a set with room.
// kSteps 2: to any set, out of which a row is moved first. Returns the lane of the slot that became free, or -1. Further sets
// are only taken if that needs no waiting; `is_contended` becomes true if another attempt may find what this one did not.
template <int kMode, int kSteps>
HPS_DEVICE int displace(const HpsModify& p, const Slot& mine, const Place& of_new, bool& is_contended) {
  const HpsSetTable& table = p.table;
  const Mover mover = mover_of<kMode>(table, mine, of_new);
  const bool is_candidate = mover.can_move && (kSteps > 1 || match(load_tags(table, mover.other).words, 0) != 0);
  for (uint32_t candidates = __ballot_sync(kWholeWarp, is_candidate); candidates != 0; candidates &= candidates - 1) {
    const int lane = __ffs(static_cast<int>(candidates)) - 1;
    const uint32_t set = __shfl_sync(kWholeWarp, mover.other, lane);
    const uint32_t version = try_lock_further(table, set);
    if (is_locked(version)) {
      is_contended = true;
      continue;
    }
    const Slot there = look(table, Place{set, set, 0, 0});
    int to_lane = __ffs(static_cast<int>(__ballot_sync(kWholeWarp, there.is_there && there.tag == 0))) - 1;
    if constexpr (kSteps > 1) {
      if (to_lane < 0) to_lane = displace<kMode, kSteps - 1>(p, there, of_new, is_contended);
    } else if (to_lane < 0) {
      is_contended = true;
    }
    if (to_lane >= 0) move_row<kMode>(p, mine, mover, lane, __shfl_sync(kWholeWarp, there.slot, to_lane));
    unlock_further(table, set, version);
    if (to_lane >= 0) return lane;
  }
  return -1;
}

// With some chance one row of full sets loses a mark.
HPS_DEVICE void forget(const HpsModify& p, const Slot& mine, uint32_t random) {
  const bool all_in_use = __all_sync(kWholeWarp, !mine.is_there || mine.mark >= 2);
  if ((random >> 15 & 1023u) >= p.forget + (all_in_use ? p.evict_proven : 0)) return;
  if (lane_id() == (random >> 25 & 31u) && mine.is_there && mine.mark != 0) {
    atomicAnd(pointer<uint32_t>(p.table.marks) + mine.slot / HPS_WAYS,
              ~((mine.mark ^ mine.mark >> 1) << (HPS_MARK_BITS * (mine.slot % HPS_WAYS))));
  }
}

// The lane of the row that has to go for a new one, or -1 if none should.
HPS_DEVICE int victim_lane(const HpsModify& p, const Slot& mine, uint32_t random) {
  const uint32_t unused = __ballot_sync(kWholeWarp, mine.is_there && mine.mark == 0);
  const uint32_t seldom = __ballot_sync(kWholeWarp, mine.is_there && mine.mark == 1);
  if (unused == 0 && (seldom == 0 || (random & 1023u) >= p.evict_proven)) return -1;
  const uint32_t candidates = unused != 0 ? unused : seldom;
  // The first one from a random lane on.
  const uint32_t from_start = candidates & ~((1u << (random >> 10 & 31u)) - 1u);
  return __ffs(static_cast<int>(from_start != 0 ? from_start : candidates)) - 1;
}

struct Totals {
  uint32_t added, overwritten, erased, evicted, refused;
};

// Changes what a key's sets hold, which are locked. Returns false if nothing was changed and another attempt should be made;
// not if it is the last one.
template <int kMode>
HPS_DEVICE bool modify_locked(const HpsModify& p, uint32_t random, uint64_t key, const Place& place, const char* from,
                              const RowStart& start, bool is_last, Totals& totals) {
  const HpsSetTable& table = p.table;
  const bool adds = p.mode == HPS_INSERT_IF_ABSENT || p.mode == HPS_UPSERT;
  const Slot mine = look(table, place);
  const uint32_t present = __ballot_sync(kWholeWarp, holds<kMode>(table, place, mine, key));
  if (present != 0) {
    const uint32_t slot = __shfl_sync(kWholeWarp, mine.slot, __ffs(static_cast<int>(present)) - 1);
    if (p.mode == HPS_ERASE) {
      if (lane_id() == 0) {
        pointer<uint16_t>(table.tags)[slot] = 0;
        set_mark(table, slot, 0);
      }
      totals.erased += 1;
    } else if (p.mode != HPS_INSERT_IF_ABSENT) {
      store_row(const_cast<char*>(row_of(table, slot, p.row_bytes)), from, start, p.row_bytes);
      totals.overwritten += 1;
    }
  } else if (adds) {
    int lane = free_lane(mine);
    bool is_contended = false;
    if (lane < 0 && p.displace != 0) lane = displace<kMode, 1>(p, mine, place, is_contended);
    if (lane < 0 && p.displace_far != 0 && !is_contended) lane = displace<kMode, 2>(p, mine, place, is_contended);
    if (lane < 0 && is_contended && !is_last) return false;
    if (lane < 0 && p.mode == HPS_INSERT_IF_ABSENT) {
      lane = victim_lane(p, mine, random);
      totals.evicted += lane >= 0;
    }
    if (lane >= 0) {
      const uint32_t slot = __shfl_sync(kWholeWarp, mine.slot, lane);
      store_row(const_cast<char*>(row_of(table, slot, p.row_bytes)), from, start, p.row_bytes);
      fill<kMode>(table, place, key, slot, p.mark);
      totals.added += 1;
    } else {
      totals.refused += p.mode == HPS_UPSERT;
    }
  }
  return true;
}

// How often a row for a cache comes back to sets that others have locked.
constexpr uint32_t kInsertAttempts = 16;

// One key, by a whole warp.
template <int kMode>
HPS_DEVICE void modify_key(const HpsModify& p, uint32_t number, Totals& totals) {
  const HpsSetTable& table = p.table;
  const uint32_t i = p.indices != 0 ? load_once(pointer<const uint32_t>(p.indices) + number) : number;
  // One lane reads it: lookups may write wanted keys meanwhile, and all lanes must have the same one.
  uint64_t key = 0;
  if (lane_id() == 0) key = load_relaxed(pointer<const uint64_t>(p.keys) + i);
  key = __shfl_sync(kWholeWarp, key, 0);
  const Place place = place_of<kMode>(table, key);
  const bool adds = p.mode == HPS_INSERT_IF_ABSENT || p.mode == HPS_UPSERT;
  if (place.tag_first == 0) {
    totals.refused += adds;
    return;
  }
  const uint32_t random = __shfl_sync(kWholeWarp, dice(p.seed ^ i * 0xc2b2ae3du), 0);
  if (p.mode == HPS_INSERT_IF_ABSENT) {
    // Many warps may bring the same key, which one of them adds; and most rows are not worth those that they would push out. A
    // look without a lock spares reading them. It may be wrong either way: then the key is brought again, or the lock decides.
    const Slot seen = look(table, place);
    if (__any_sync(kWholeWarp, holds<kMode>(table, place, seen, key))) return;
    if (free_lane(seen) < 0) {
      forget(p, seen, random);
      if (victim_lane(p, seen, random) < 0) return;
    }
  }
  const char* from = nullptr;
  RowStart start{};
  if (p.mode != HPS_ERASE) {
    if (p.rows != 0) {
      from = pointer<const char>(p.rows) + static_cast<uint64_t>(i) * p.row_bytes;
    } else {
      const uint32_t slot = find<kMode>(p.source, key, place_of<kMode>(p.source, key));
      if (slot == kNoSlot) return;
      from = pointer<const char>(address_of_row(p.source, slot, p.row_bytes));
      if (from == nullptr) return;
    }
    start = load_start(from, p.row_bytes);
  }

  // Rows on the way to their other set, and sets that others have locked, may leave no room for a moment.
  for (uint32_t attempt = 1;; ++attempt) {
    uint32_t version;
    if (p.mode != HPS_INSERT_IF_ABSENT) {
      version = lock_sets(table, place);
    } else if (!try_lock_sets(table, place, attempt - 1, version)) {
      // Likely by a warp that brings the same key: of the hottest one, thousands may. Nobody queues for a lock, only to find that
      // there is nothing left to do; and a key that is not brought now will be asked for again.
      if (attempt == kInsertAttempts) return;
      pause(attempt);
      if (__any_sync(kWholeWarp, holds<kMode>(table, place, look(table, place), key))) return;
      continue;
    }
    const bool is_done = modify_locked<kMode>(p, random, key, place, from, start, attempt >= p.displace, totals);
    unlock_sets(table, place, version);
    if (is_done) return;
    pause(attempt);
  }
}

template <int kMode>
HPS_DEVICE void modify(const HpsModify& p) {
  const uint32_t num_warps = gridDim.x * (HPS_MODIFY_THREADS / 32);
  Totals totals{};
  begin_writing(p.table);
  for (uint32_t i = (blockIdx.x * HPS_MODIFY_THREADS + threadIdx.x) / 32; i < p.num_keys; i += num_warps) {
    modify_key<kMode>(p, i, totals);
  }
  end_writing(p.table);
  if (lane_id() != 0) return;
  HpsModifyResults* results = pointer<HpsModifyResults>(p.results);
  if (totals.added != 0) atomic_add(&results->added, totals.added);
  if (totals.overwritten != 0) atomic_add(&results->overwritten, totals.overwritten);
  if (totals.erased != 0) atomic_add(&results->erased, totals.erased);
  if (totals.evicted != 0) atomic_add(&results->evicted, totals.evicted);
  if (totals.refused != 0) atomic_add(&results->refused, totals.refused);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(HPS_MODIFY_THREADS) modify_exact(const __grid_constant__ HpsModify p) {
  modify<HPS_TAGS_EXACT>(p);
}
extern "C" __global__ void __launch_bounds__(HPS_MODIFY_THREADS) modify_hashed(const __grid_constant__ HpsModify p) {
  modify<HPS_TAGS_HASHED>(p);
}
