// Finding keys in an HpsSetTable, and the rules by which many kernels use one table at a time.
//
//   set        tags  [t0 t1 ... t15]  32 bytes, one sector: 0 = empty
//              keys  [k0 k1 ... k15]  128 bytes, only with HPS_TAGS_HASHED
//              mark  2 bits a slot, one 32-bit word   (marks.cuh)
//              version                one 32-bit word, odd while a writer works on the set
//   table      rows  [set 0: r0 ... r15][set 1: ...]  row_bytes each, no gaps; in a map, the addresses of rows
//              writers  {begun, ended}
//
// Writers (modify.cu) lock the sets of a key by making their versions odd, change tags, keys and rows, and unlock them. Each
// block counts itself in `writers.begun` before its first change and in `writers.ended` after its last.
//
// Readers take no lock and write nothing but marks. A warp reads its keys optimistically:
//   1. it reads `writers`; if begun != ended, somebody is at work: go to 4
//   2. it probes and copies rows; keys whose tag was another key's are looked for again by their whole (mend in lookup.cu)
//   3. it reads `writers.begun` again: unchanged, then nothing it read was changed meanwhile, and it is done
//   4. key by key: read the versions of the key's sets (even), probe, copy, read the version of the set again; if it has
//      changed, once more.
// Why 3 suffices: a writer's `begun` comes before its changes (fence), a reader's data before its second look (fence); so a
// reader that saw any change sees `begun`. Why 4 ends: a lock is held by a running warp, which never
// waits for another lock.
//
// Rows that a map points to are written by the host, never while the map shows them: a row is written elsewhere, the map is
// changed, and only when that kernel has ended is the old place used again. So a reader of the old place sees `begun` changed. (The
// memory model has no name for this: the writer is the host, the reader's fence is the device's. It rests on reads of host memory
// that have returned before the fence has passed, and are not kept in a cache.)
//
// A reader that is not done writes its row again, so what a caller sees when the kernel has ended is one whole version of the
// right key's row.
#pragma once
#include "placement.cuh"

constexpr uint32_t kNoSlot = 0xffffffffu;

struct Tags {
  uint32_t words[8];
};

// A half of a set's tags. kPasses: as in load_passing, else as the table says.
template <bool kPasses>
HPS_DEVICE uint4 load_half(const HpsSetTable& table, uint32_t set, uint32_t half) {
  const uint4* p = pointer<const uint4>(table.tags) + static_cast<uint64_t>(set) * 2 + half;
  return load_once(p, kPasses ? evict_first() : evict_last_if(table.keeps_tags != 0));
}

template <bool kPasses = false>
HPS_DEVICE Tags load_tags(const HpsSetTable& table, uint32_t set) {
  const uint4 a = load_half<kPasses>(table, set, 0);
  const uint4 b = load_half<kPasses>(table, set, 1);
  return Tags{{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

// One bit for each half of the words that equals `tag`.
template <int kWords>
HPS_DEVICE uint32_t match(const uint32_t (&words)[kWords], uint32_t tag) {
  const uint32_t pair = tag | tag << 16;
  uint32_t ways = 0;
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    // 0xffff in each half that is equal.
    const uint32_t equal = __vcmpeq2(words[i], pair);
    ways |= (equal & 1u) << (2 * i);
    ways |= (equal & 0x10000u) >> (15 - 2 * i);
  }
  return ways;
}

HPS_DEVICE uint32_t lowest(uint32_t ways) { return static_cast<uint32_t>(__ffs(static_cast<int>(ways))) - 1; }

// The slot of `key` in one set, or kNoSlot.
template <int kMode>
HPS_DEVICE uint32_t find_in_set(const HpsSetTable& table, uint64_t key, uint32_t set, uint32_t tag) {
  if (tag == 0) return kNoSlot;
  uint32_t ways = match(load_tags(table, set).words, tag);
  while (ways != 0) {
    const uint32_t slot = set * HPS_WAYS + lowest(ways);
    if (kMode == HPS_TAGS_EXACT) return slot;
    if (load_once(pointer<const uint64_t>(table.keys) + slot) == key) return slot;
    ways &= ways - 1;
  }
  return kNoSlot;
}

template <int kMode>
HPS_DEVICE uint32_t find(const HpsSetTable& table, uint64_t key, const Place& place) {
  const uint32_t slot = find_in_set<kMode>(table, key, place.first, place.tag_first);
  return slot != kNoSlot ? slot : find_in_set<kMode>(table, key, place.second, place.tag_second);
}

// The slot in one of the key's sets that has its tag, or kNoSlot: with HPS_TAGS_HASHED the key is still to be compared.
// kShare lanes have the same key and share the work: one lane asks the second set after the first, two or four ask both sets
// at once.
template <int kShare, bool kPasses>
HPS_DEVICE uint32_t find_tag(const HpsSetTable& table, const Place& place) {
  if constexpr (kShare == 1) {
    if (place.tag_first == 0) return kNoSlot;
    uint32_t ways = match(load_tags<kPasses>(table, place.first).words, place.tag_first);
    if (ways != 0) return place.first * HPS_WAYS + lowest(ways);
    ways = match(load_tags<kPasses>(table, place.second).words, place.tag_second);
    return ways != 0 ? place.second * HPS_WAYS + lowest(ways) : kNoSlot;
  } else {
    const uint32_t part = lane_id() % kShare;
    const bool in_second = part >= kShare / 2;
    const uint32_t set = in_second ? place.second : place.first;
    const uint32_t tag = in_second ? place.tag_second : place.tag_first;
    uint32_t slot = kNoSlot;
    if (tag != 0) {
      if constexpr (kShare == 2) {
        const uint32_t ways = match(load_tags<kPasses>(table, set).words, tag);
        if (ways != 0) slot = set * HPS_WAYS + lowest(ways);
      } else {
        const uint4 half = load_half<kPasses>(table, set, part % 2);
        const uint32_t words[4] = {half.x, half.y, half.z, half.w};
        const uint32_t ways = match(words, tag);
        if (ways != 0) slot = set * HPS_WAYS + part % 2 * (HPS_WAYS / 2) + lowest(ways);
      }
    }
    // kNoSlot is the largest number.
#pragma unroll
    for (int distance = 1; distance < kShare; distance *= 2) {
      slot = min(slot, __shfl_xor_sync(kWholeWarp, slot, distance));
    }
    return slot;
  }
}

HPS_DEVICE uint32_t* version_of(const HpsSetTable& table, uint32_t set) { return pointer<uint32_t>(table.versions) + set; }

// Reads `writers`; everything after happens after it.
HPS_DEVICE HpsWriters read_writers(const HpsSetTable& table) {
  const uint64_t both = load_acquire(pointer<const uint64_t>(table.writers));
  return HpsWriters{static_cast<uint32_t>(both), static_cast<uint32_t>(both >> 32)};
}

HPS_DEVICE const char* row_of(const HpsSetTable& table, uint32_t slot, uint32_t row_bytes) {
  return pointer<const char>(table.rows) + static_cast<uint64_t>(slot) * row_bytes;
}

// The address of a row, also where the table is a map. A map's slot holds 0 before it is first used; whatever else it holds,
// whole, is or was the address of a row, so it may be followed before it is known whether it was being changed.
template <bool kPasses = false>
HPS_DEVICE uint64_t address_of_row(const HpsSetTable& table, uint32_t slot, uint32_t row_bytes) {
  if (table.is_map != 0) {
    const uint64_t* address = pointer<const uint64_t>(table.rows) + slot;
    return kPasses ? load_relaxed(address, evict_first()) : load_relaxed(address);
  }
  return reinterpret_cast<uint64_t>(row_of(table, slot, row_bytes));
}
