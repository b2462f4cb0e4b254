// Looks keys up and writes their rows: the kernel of the hit path.
//
// A warp takes 32 keys (or 16 or 8, for latency), finds their rows, and copies them, several lanes a row. Grid: one warp for
// each 32 (16, 8) keys. Entry points:
//   lookup_<tags>_<vector bytes>x<lanes a row>_<large, medium or small>   with fp8 for the vector where rows are of 8-bit floats
//   lookup_<tags>_<vector bytes>x<lanes a row>_passing   for many keys of a table with a second part (fetch.cu says why)
//   lookup_many                                          for keys of several tables
//
// Keys that neither table holds get the default row, if there is one (else their rows hold nothing of meaning), and are listed
// for the host, if it wants to know.
// Order of work and what a reader may see: set_table.cuh.
#include "include/fp8_rows.cuh"
#include "include/marks.cuh"
#include "include/reading.cuh"

namespace {

// What the first pass found, still to be confirmed.
struct Guess {
  Found found;
  uint64_t stored_key;  // of the slot, with HPS_TAGS_HASHED
};

// Looks for a key without waiting for a whole comparison. kShare lanes have the same key.
template <int kMode, int kShare, bool kPasses>
HPS_DEVICE Guess guess(const HpsLookup& p, uint64_t key, bool is_key) {
  Guess g{{p.default_row, kNoSlot, kNowhere}, key};
  const HpsSetTable* table = &p.first;
  uint32_t slot = find_tag<kShare, kPasses>(p.first, place_of<kMode>(p.first, key));
  if (slot != kNoSlot) {
    g.found.where = kFirst;
  } else if (p.second.num_sets != 0) {
    table = &p.second;
    g.found.where = kSecond;
  }
  if (p.second.num_sets != 0 && __any_sync(kWholeWarp, slot == kNoSlot)) {
    const uint32_t second_slot = find_tag<kShare, kPasses>(p.second, place_of<kMode>(p.second, key));
    if (slot == kNoSlot) slot = second_slot;
    if (slot == kNoSlot) g.found.where = kNowhere;
  }
  if (slot != kNoSlot) {
    g.found.slot = slot;
    g.found.row = table == &p.first ? reinterpret_cast<uint64_t>(row_of(p.first, slot, p.row_bytes))
                                    : address_of_row<kPasses>(p.second, slot, p.row_bytes);
    if (kMode == HPS_TAGS_HASHED) g.stored_key = load_passing<kPasses>(pointer<const uint64_t>(table->keys) + slot);
  }
  if (!is_key) g.found = Found{0, kNoSlot, kNoKey};
  return g;
}

// Rows that were found, to the caller.
template <typename Vec, int kLanes, int kKeys, bool kPasses, typename AfterLastLoad>
HPS_DEVICE void copy_found(const HpsLookup& p, uint64_t row, char* out, AfterLastLoad after_last_load) {
  if constexpr (kIsFp8<Vec>) {
    copy_fp8_rows<kLanes, kKeys>(row, out, p.out_row_bytes / 4, after_last_load);
  } else {
    copy_rows<Vec, kLanes, kKeys, kPasses>(row, out, p.row_bytes, after_last_load);
  }
}

// Finds a key by its whole, all lanes together: one slot of its two sets each.
HPS_DEVICE uint32_t find_whole_key(const HpsSetTable& table, uint64_t key) {
  static_assert(2 * HPS_WAYS == 32, "a lane for each slot");
  const Place place = place_of<HPS_TAGS_HASHED>(table, key);
  const uint32_t slot = (lane_id() < HPS_WAYS ? place.first : place.second) * HPS_WAYS + lane_id() % HPS_WAYS;
  const uint32_t tag = load_relaxed(pointer<const uint16_t>(table.tags) + slot);
  const uint64_t stored = load_once(pointer<const uint64_t>(table.keys) + slot);
  const uint32_t slots = __ballot_sync(kWholeWarp, tag == place.tag_first && stored == key);
  return slots == 0 ? kNoSlot : __shfl_sync(kWholeWarp, slot, static_cast<int>(lowest(slots)));
}

// Reads the rows of keys whose guess was another key with their tag: few, but a batch of thousands has one, and waits for it.
// As exact as a guess that was right: what it reads is to be confirmed like that.
template <typename Vec, int kLanes, int kKeys>
__device__ __noinline__ Found mend(const HpsLookup& p, uint64_t key, Found found, bool is_wrong, char* out) {
  constexpr int kShare = 32 / kKeys;
  for (uint32_t wrong = __ballot_sync(kWholeWarp, is_wrong && lane_id() % kShare == 0); wrong != 0; wrong &= wrong - 1) {
    const uint32_t owner = lowest(wrong);
    const uint64_t its_key = __shfl_sync(kWholeWarp, key, static_cast<int>(owner));
    const Found its = resolve_by(p, [&](const HpsSetTable& table) { return find_whole_key(table, its_key); });
    if (lane_id() / kShare == owner / kShare) found = its;
  }
  const bool is_left = p.fetch.entries != 0 && found.where == kSecond;
  // What the guess has written may lie where other lanes write now.
  __syncwarp();
  copy_found<Vec, kLanes, kKeys, false>(p, is_wrong && !is_left ? found.row : 0, out, [] {});
  return found;
}

// Step 4 of set_table.cuh, for the keys of a whole warp: those that changed while they were read are read again.
template <int kMode, typename Vec, int kLanes, int kKeys>
__device__ __noinline__ Found read_carefully(const HpsLookup& p, uint64_t key, bool is_key, char* out) {
  const Place place = place_of<kMode>(p.first, key);
  const Place place_second = p.second.num_sets != 0 ? place_of<kMode>(p.second, key) : place;
  Found found{0, kNoSlot, kNoKey};
  bool pending = is_key;
  while (__any_sync(kWholeWarp, pending)) {
    Versions versions{};
    uint64_t row = 0;
    if (pending) {
      versions = read_versions<kMode>(p, place, place_second);
      found = resolve<kMode>(p, key, place, place_second);
      row = found.row;
    }
    __syncwarp();
    copy_found<Vec, kLanes, kKeys, false>(p, row, out, [] {});
    // All lanes have read the row when any of them looks at the versions again.
    fence();
    __syncwarp();
    if (pending) pending = !are_current(p, place, place_second, versions);
  }
  return found;
}

// Adds a warp's numbers to one of the copies of the counters; `sign` -1 takes them back.
HPS_DEVICE void count(const HpsLookup& p, uint32_t warp, const Found& found, bool is_counted, int sign) {
  if (p.counters == 0) return;
  const int first = __popc(__ballot_sync(kWholeWarp, is_counted && found.where == kFirst));
  const int second = __popc(__ballot_sync(kWholeWarp, is_counted && found.where == kSecond));
  // Keys that the host answers are counted there.
  const int missed = __popc(__ballot_sync(kWholeWarp, is_counted && found.where == kNowhere && p.default_row != 0));
  if (lane_id() != 0) return;
  HpsLookupCounters* counters = pointer<HpsLookupCounters>(p.counters) + warp % HPS_COUNTER_COPIES;
  if (first != 0) atomic_add(&counters->first, static_cast<uint64_t>(static_cast<long long>(sign * first)));
  if (second != 0) atomic_add(&counters->second, static_cast<uint64_t>(static_cast<long long>(sign * second)));
  if (missed != 0) atomic_add(&counters->missed, static_cast<uint64_t>(static_cast<long long>(sign * missed)));
}

// Lists the keys that were not found; the warp that finishes last tells the host.
HPS_DEVICE void list_misses(const HpsMissList& list, uint32_t num_warps, bool is_missed, uint32_t position, uint64_t key) {
  const uint32_t missed = __ballot_sync(kWholeWarp, is_missed);
  if (missed != 0) {
    uint32_t base = 0;
    if (lane_id() == 0) base = atomicAdd(pointer<uint32_t>(list.count), static_cast<uint32_t>(__popc(missed)));
    base = __shfl_sync(kWholeWarp, base, 0);
    if (is_missed) {
      const uint32_t at = base + static_cast<uint32_t>(__popc(missed & ((1u << lane_id()) - 1u)));
      pointer<uint32_t>(list.positions)[at] = position;
      pointer<uint64_t>(list.keys)[at] = key;
    }
    // The host may read an entry once the word below is there.
    fence_system();
    __syncwarp();
  }
  if (lane_id() == 0) {
    fence();
    if (atomicAdd(pointer<uint32_t>(list.done), 1u) == num_warps - 1) {
      fence_system();
      const uint32_t count = load_relaxed(pointer<const uint32_t>(list.count));
      // Everybody else is done with these.
      *pointer<uint32_t>(list.count) = 0;
      *pointer<uint32_t>(list.done) = 0;
      if (list.unique != 0) {
        *pointer<uint64_t>(list.unique_out) = load_relaxed(pointer<const uint32_t>(list.unique));
        *pointer<uint32_t>(list.unique) = 0;
        fence_system();
      }
      store_release_system(pointer<uint64_t>(list.word), static_cast<uint64_t>(list.sequence) << 32 | count);
    }
  }
}

// Leaves rows that were found in host memory to be fetched. `begun` is what the second table's writers showed before.
HPS_DEVICE void leave(const HpsFetchList& list, bool is_left, uint64_t address, uint32_t position, uint32_t begun) {
  const uint32_t left = __ballot_sync(kWholeWarp, is_left);
  if (left == 0) return;
  uint32_t base = 0;
  if (lane_id() == 0) base = atomicAdd(pointer<uint32_t>(list.counts), static_cast<uint32_t>(__popc(left)));
  base = __shfl_sync(kWholeWarp, base, 0);
  if (is_left) {
    const uint32_t at = base + static_cast<uint32_t>(__popc(left & ((1u << lane_id()) - 1u)));
    pointer<HpsFetchEntry>(list.entries)[at] = HpsFetchEntry{address, position, begun};
    atomicAdd(pointer<uint32_t>(list.buckets) + fetch_bucket(address), 1u);
  }
}

// Offers keys that only the second table holds to whoever fills the first.
HPS_DEVICE void want(const HpsLookup& p, bool is_wanted, uint64_t key) {
  const uint32_t wanted = __ballot_sync(kWholeWarp, is_wanted);
  if (wanted == 0) return;
  HpsWantedKeys* list = pointer<HpsWantedKeys>(p.wanted);
  uint64_t base = 0;
  if (lane_id() == 0) base = atomic_add(&list->count, static_cast<uint64_t>(__popc(wanted)));
  base = __shfl_sync(kWholeWarp, base, 0);
  if (is_wanted) {
    const uint64_t at = base + static_cast<uint64_t>(__popc(wanted & ((1u << lane_id()) - 1u)));
    list->keys[at % HPS_WANTED_KEYS] = key;
  }
}

// `block` is the number of the block among those of this lookup. kPasses: as in load_passing.
template <int kMode, typename Vec, int kLanes, int kKeys, bool kPasses>
HPS_DEVICE void lookup(const HpsLookup& p, uint32_t block) {
  constexpr int kShare = 32 / kKeys;
  const uint32_t warp = (block * blockDim.x + threadIdx.x) / 32;
  const uint32_t first_key = warp * kKeys;
  if (first_key >= p.num_keys) return;
  // With fewer keys than lanes, kShare lanes hold the same key; the first of them counts.
  const uint32_t position = first_key + lane_id() / kShare;
  const bool is_key = position < p.num_keys;
  const bool is_counted = is_key && lane_id() % kShare == 0;
  uint64_t key = 0;
  if (is_key) {
    key = p.key_bytes == 8 ? load_passing<kPasses>(pointer<const uint64_t>(p.keys) + position)
                           : load_passing<kPasses>(pointer<const uint32_t>(p.keys) + position);
  }
  char* out = pointer<char>(p.out) + static_cast<uint64_t>(first_key) * p.out_row_bytes;

  // Step 1 of set_table.cuh. Lanes agree, so that all of them go the same way.
  const bool has_second = p.second.num_sets != 0;
  const HpsWriters before = read_writers(p.first);
  const HpsWriters before_second = has_second ? read_writers(p.second) : HpsWriters{0, 0};
  bool is_done = before.begun == before.ended && before_second.begun == before_second.ended;
  Found found{0, kNoSlot, kNoKey};
  if (__all_sync(kWholeWarp, is_done)) {
    const Guess g = guess<kMode, kShare, kPasses>(p, key, is_key);
    found = g.found;
    // Marks and counters travel while rows do.
    Use use = start_use(p.first, found.slot, is_counted && found.where == kFirst, dice(position));
    count(p, warp, found, is_counted, 1);
    uint32_t after = before.begun;
    uint32_t after_second = before_second.begun;
    bool is_left = p.fetch.entries != 0 && found.where == kSecond;
    const auto look_again = [&] {
      fence();
      after = load_relaxed(pointer<const uint32_t>(p.first.writers));
      if (has_second) after_second = load_relaxed(pointer<const uint32_t>(p.second.writers));
    };
    copy_found<Vec, kLanes, kKeys, kPasses>(p, is_left ? 0 : found.row, out, look_again);
    // Exact tags are never another key's.
    const bool is_wrong = kMode == HPS_TAGS_HASHED && is_key && g.stored_key != key;
    if (is_wrong) use.is_noted = false;
    finish_use(p.first, found.slot, use);
    is_done = __all_sync(kWholeWarp, after == before.begun && after_second == before_second.begun);
    if (kMode == HPS_TAGS_HASHED && is_done && __any_sync(kWholeWarp, is_wrong)) {
      count(p, warp, found, is_counted, -1);
      found = mend<Vec, kLanes, kKeys>(p, key, found, is_wrong, out);
      count(p, warp, found, is_counted, 1);
      is_left = p.fetch.entries != 0 && found.where == kSecond;
      const bool is_used = is_wrong && is_counted && found.where == kFirst;
      finish_use(p.first, found.slot, start_use(p.first, found.slot, is_used, dice(position)));
      look_again();
      is_done = __all_sync(kWholeWarp, after == before.begun && after_second == before_second.begun);
    }
    if (!is_done) count(p, warp, found, is_counted, -1);
    if (is_done && p.fetch.entries != 0) leave(p.fetch, is_left && is_counted, found.row, position, before_second.begun);
  } else {
    is_done = false;
  }
  if (!is_done) {
    found = read_carefully<kMode, Vec, kLanes, kKeys>(p, key, is_key, out);
    count(p, warp, found, is_counted, 1);
    finish_use(p.first, found.slot, start_use(p.first, found.slot, is_counted && found.where == kFirst, dice(position)));
  }

  if (p.misses.word != 0) {
    list_misses(p.misses, (p.num_keys + kKeys - 1) / kKeys, is_counted && found.where == kNowhere, position, key);
  }
  if (p.wanted != 0) want(p, is_counted && found.where == kSecond, key);
}

}  // namespace

// Blocks of a multiprocessor, which bound the registers of a thread. Measured on an H100: with many keys, short rows profit from
// more warps, long ones need the registers. Few keys do not fill a multiprocessor anyway; rows of 8-bit floats, which are two
// loads each, do not fit into fewer registers.
template <typename Vec>
constexpr int min_blocks(int lanes, int keys) {
  return lanes <= 8 && keys == HPS_KEYS_PER_WARP_LARGE && !kIsFp8<Vec> ? 7 : 4;
}

#define HPS_LOOKUP_ENTRY(name, mode, vector, lanes, keys, passes)                                   \
  extern "C" __global__ void __launch_bounds__(HPS_LOOKUP_THREADS, min_blocks<vector>(lanes, keys)) \
      name(const __grid_constant__ HpsLookup p) {                                                   \
    lookup<mode, vector, lanes, keys, passes>(p, blockIdx.x);                                       \
  }
#define HPS_LOOKUP(name, mode, vector, lanes)                                           \
  HPS_LOOKUP_ENTRY(name##_large, mode, vector, lanes, HPS_KEYS_PER_WARP_LARGE, false)   \
  HPS_LOOKUP_ENTRY(name##_medium, mode, vector, lanes, HPS_KEYS_PER_WARP_MEDIUM, false) \
  HPS_LOOKUP_ENTRY(name##_small, mode, vector, lanes, HPS_KEYS_PER_WARP_SMALL, false)
#define HPS_LOOKUP_PASSING(name, mode, vector, lanes) \
  HPS_LOOKUP_ENTRY(name##_passing, mode, vector, lanes, HPS_KEYS_PER_WARP_LARGE, true)

HPS_LOOKUP(lookup_exact_16x4, HPS_TAGS_EXACT, uint4, 4)
HPS_LOOKUP(lookup_exact_16x8, HPS_TAGS_EXACT, uint4, 8)
HPS_LOOKUP(lookup_exact_16x16, HPS_TAGS_EXACT, uint4, 16)
HPS_LOOKUP(lookup_exact_16x32, HPS_TAGS_EXACT, uint4, 32)
HPS_LOOKUP(lookup_exact_4x8, HPS_TAGS_EXACT, uint32_t, 8)
HPS_LOOKUP(lookup_exact_4x32, HPS_TAGS_EXACT, uint32_t, 32)
HPS_LOOKUP(lookup_exact_fp8x8, HPS_TAGS_EXACT, Fp8, 8)
HPS_LOOKUP(lookup_exact_fp8x32, HPS_TAGS_EXACT, Fp8, 32)
HPS_LOOKUP(lookup_hashed_16x4, HPS_TAGS_HASHED, uint4, 4)
HPS_LOOKUP(lookup_hashed_16x8, HPS_TAGS_HASHED, uint4, 8)
HPS_LOOKUP(lookup_hashed_16x16, HPS_TAGS_HASHED, uint4, 16)
HPS_LOOKUP(lookup_hashed_16x32, HPS_TAGS_HASHED, uint4, 32)
HPS_LOOKUP(lookup_hashed_4x8, HPS_TAGS_HASHED, uint32_t, 8)
HPS_LOOKUP(lookup_hashed_4x32, HPS_TAGS_HASHED, uint32_t, 32)
HPS_LOOKUP(lookup_hashed_fp8x8, HPS_TAGS_HASHED, Fp8, 8)
HPS_LOOKUP(lookup_hashed_fp8x32, HPS_TAGS_HASHED, Fp8, 32)

HPS_LOOKUP_PASSING(lookup_exact_16x4, HPS_TAGS_EXACT, uint4, 4)
HPS_LOOKUP_PASSING(lookup_exact_16x8, HPS_TAGS_EXACT, uint4, 8)
HPS_LOOKUP_PASSING(lookup_exact_16x16, HPS_TAGS_EXACT, uint4, 16)
HPS_LOOKUP_PASSING(lookup_exact_16x32, HPS_TAGS_EXACT, uint4, 32)
HPS_LOOKUP_PASSING(lookup_exact_4x8, HPS_TAGS_EXACT, uint32_t, 8)
HPS_LOOKUP_PASSING(lookup_exact_4x32, HPS_TAGS_EXACT, uint32_t, 32)
HPS_LOOKUP_PASSING(lookup_hashed_16x4, HPS_TAGS_HASHED, uint4, 4)
HPS_LOOKUP_PASSING(lookup_hashed_16x8, HPS_TAGS_HASHED, uint4, 8)
HPS_LOOKUP_PASSING(lookup_hashed_16x16, HPS_TAGS_HASHED, uint4, 16)
HPS_LOOKUP_PASSING(lookup_hashed_16x32, HPS_TAGS_HASHED, uint4, 32)
HPS_LOOKUP_PASSING(lookup_hashed_4x8, HPS_TAGS_HASHED, uint32_t, 8)
HPS_LOOKUP_PASSING(lookup_hashed_4x32, HPS_TAGS_HASHED, uint32_t, 32)

namespace {

template <int kMode>
HPS_DEVICE void lookup_any_row(const HpsLookup& p, uint32_t block) {
  constexpr int kKeys = HPS_KEYS_PER_WARP_MEDIUM;
  if (p.is_fp8 != 0) {
    lookup<kMode, Fp8, 8, kKeys, false>(p, block);
  } else if (p.row_bytes % 16 == 0) {
    lookup<kMode, uint4, 8, kKeys, false>(p, block);
  } else {
    lookup<kMode, uint32_t, 8, kKeys, false>(p, block);
  }
}

}  // namespace

// Blocks of HPS_LOOKUP_MANY_THREADS threads: for each lookup, one warp for each HPS_KEYS_PER_WARP_MEDIUM keys.
extern "C" __global__ void __launch_bounds__(HPS_LOOKUP_MANY_THREADS) lookup_many(const __grid_constant__ HpsLookups many) {
  __shared__ HpsLookup p;
  const uint32_t* first_blocks = pointer<const uint32_t>(many.first_blocks);
  // The last lookup that begins at this block or before it.
  uint32_t number = 0;
  for (uint32_t end = many.num_lookups; end - number > 1;) {
    const uint32_t middle = (number + end) / 2;
    if (load_once(first_blocks + middle) <= blockIdx.x) {
      number = middle;
    } else {
      end = middle;
    }
  }
  const uint32_t* from = pointer<const uint32_t>(many.lookups + number * sizeof(HpsLookup));
  for (uint32_t i = threadIdx.x; i < sizeof(HpsLookup) / 4; i += blockDim.x) {
    reinterpret_cast<uint32_t*>(&p)[i] = load_once(from + i);
  }
  __syncthreads();
  const uint32_t block = blockIdx.x - load_once(first_blocks + number);
  if (p.first.keys != 0) {
    lookup_any_row<HPS_TAGS_HASHED>(p, block);
  } else {
    lookup_any_row<HPS_TAGS_EXACT>(p, block);
  }
}
