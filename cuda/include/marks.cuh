// How much a row is used: two bits a slot that fill from the right, 00 -> 01 -> 11. Lookups add bits for a quarter of their
// hits, chosen at random; writers take bits away from rows of sets that are full (modify.cu). A table's marks take 4 bytes a
// set, so they stay in the second-level cache.
#pragma once
#include "set_table.cuh"

HPS_DEVICE uint32_t mark_of(uint32_t marks, uint32_t way) { return marks >> (HPS_MARK_BITS * way) & 3u; }

// The use of a slot, one time in four. In two steps, so that the first one's memory access has time: start before rows are
// copied, finish after.
struct Use {
  uint32_t marks;
  bool is_noted;
};

HPS_DEVICE Use start_use(const HpsSetTable& table, uint32_t slot, bool is_used, uint32_t random) {
  Use use{0, is_used && random >> 30 == 0};
  if (use.is_noted) use.marks = load_relaxed(pointer<const uint32_t>(table.marks) + slot / HPS_WAYS);
  return use;
}

// Lookups only add bits, so it does not matter which is first. A writer that takes one away meanwhile may leave 10, which counts as
// 11 does.
HPS_DEVICE void finish_use(const HpsSetTable& table, uint32_t slot, const Use& use) {
  const uint32_t mark = mark_of(use.marks, slot % HPS_WAYS);
  if (use.is_noted && mark != 3u) {
    atomicOr(pointer<uint32_t>(table.marks) + slot / HPS_WAYS, ((mark << 1 | 1u) & 3u)
                                                                   << (HPS_MARK_BITS * (slot % HPS_WAYS)));
  }
}
