// How a reader finds a key's row, and how it notices that somebody has changed what it read: step 4 of set_table.cuh.
#pragma once
#include "set_table.cuh"

// Where a lane's key was found.
enum Where { kNowhere = 0, kFirst = 1, kSecond = 2, kNoKey = 3 };

struct Found {
  uint64_t row;  // address, or 0: nothing to copy
  uint32_t slot;
  int where;
};

// Looks in the first table, then in the second, where `slot_in` says that the key is.
template <typename SlotIn>
HPS_DEVICE Found resolve_by(const HpsLookup& p, SlotIn slot_in) {
  Found found{p.default_row, kNoSlot, kNowhere};
  found.slot = slot_in(p.first);
  if (found.slot != kNoSlot) {
    found.where = kFirst;
    found.row = reinterpret_cast<uint64_t>(row_of(p.first, found.slot, p.row_bytes));
  } else if (p.second.num_sets != 0) {
    found.slot = slot_in(p.second);
    if (found.slot != kNoSlot) {
      found.where = kSecond;
      found.row = address_of_row(p.second, found.slot, p.row_bytes);
    }
  }
  return found;
}

// Exact, if nobody changes the key's sets meanwhile.
template <int kMode>
HPS_DEVICE Found resolve(const HpsLookup& p, uint64_t key, const Place& place, const Place& place_second) {
  return resolve_by(
      p, [&](const HpsSetTable& table) { return find<kMode>(table, key, &table == &p.first ? place : place_second); });
}

// The versions of the sets where a key may be: unchanged versions, unchanged rows.
struct Versions {
  uint32_t first[2];
  uint32_t second[2];
};

HPS_DEVICE uint32_t wait_until_even(const uint32_t* version) {
  uint32_t value = load_acquire(version);
  while ((value & 1u) != 0) value = load_acquire(version);
  return value;
}

template <int kMode>
HPS_DEVICE Versions read_versions(const HpsLookup& p, const Place& place, const Place& place_second) {
  Versions v{};
  v.first[0] = wait_until_even(version_of(p.first, place.first));
  v.first[1] = wait_until_even(version_of(p.first, place.second));
  if (p.second.num_sets != 0) {
    v.second[0] = wait_until_even(version_of(p.second, place_second.first));
    v.second[1] = wait_until_even(version_of(p.second, place_second.second));
  }
  return v;
}

HPS_DEVICE bool are_current(const HpsLookup& p, const Place& place, const Place& place_second, const Versions& v) {
  bool current = load_relaxed(version_of(p.first, place.first)) == v.first[0] &&
                 load_relaxed(version_of(p.first, place.second)) == v.first[1];
  if (p.second.num_sets != 0) {
    current = current && load_relaxed(version_of(p.second, place_second.first)) == v.second[0] &&
              load_relaxed(version_of(p.second, place_second.second)) == v.second[1];
  }
  return current;
}

// The bucket of an address, for HpsFetchList: a piece of 2 MB. Pieces that are 8 GB apart share one.
HPS_DEVICE uint32_t fetch_bucket(uint64_t address) { return static_cast<uint32_t>(address >> 21) % HPS_FETCH_BUCKETS; }
