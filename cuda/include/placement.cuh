// key -> its two sets and its tag.
//
// A key may lie in any slot of two sets, the first and the second. Both modes spread any keys evenly.
//
// HPS_TAGS_EXACT: a permutation of the k-bit numbers spreads the keys; x = permuted key, q = x / num_sets, first = x % num_sets,
// and second = first + shift(q) mod num_sets. The tag is 1 + 2 q + (1 in the second set): with the set it gives q, the set
// gives first, and both give the key. So equal tags are equal keys. q < 32767 bounds the keys.
// HPS_TAGS_HASHED: sets and tag are separate bits of a 64-bit hash; the key beside the tag decides.
//
// Tag 0 is an empty slot.
#pragma once
#include "device.cuh"

struct Place {
  uint32_t first;
  uint32_t second;
  uint32_t tag_first;  // 0: the key cannot be held
  uint32_t tag_second;
};

HPS_DEVICE uint64_t mix64(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ull;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ull;
  x ^= x >> 32;
  return x;
}

HPS_DEVICE uint32_t permute(uint32_t x, uint32_t mask, uint32_t shift) {
  x = (x * 0x9e3779b1u) & mask;
  x ^= x >> shift;
  x = (x * 0x85ebca77u) & mask;
  x ^= x >> shift;
  x = (x * 0xc2b2ae3du) & mask;
  x ^= x >> shift;
  return x;
}

// Undoes permute: the multipliers are inverses modulo 2^32, and x ^= x >> s is its own inverse for s >= k / 2.
HPS_DEVICE uint32_t unpermute(uint32_t x, uint32_t mask, uint32_t shift) {
  x ^= x >> shift;
  x = (x * 0xa89ed915u) & mask;
  x ^= x >> shift;
  x = (x * 0xb6c92f47u) & mask;
  x ^= x >> shift;
  x = (x * 0x0e8b2f51u) & mask;
  return x;
}

// Distance from the first to the second set: 1 to num_sets - 1, or 0 if there is one set.
HPS_DEVICE uint32_t set_shift(uint32_t q, uint32_t num_sets) {
  return num_sets == 1 ? 0 : 1 + __umulhi((q + 1) * 0x9e3779b1u, num_sets - 1);
}

template <int kMode>
HPS_DEVICE Place place_of(const HpsSetTable& table, uint64_t key) {
  Place place;
  if (kMode == HPS_TAGS_EXACT) {
    const uint32_t x = permute(static_cast<uint32_t>(key), table.key_mask, table.key_shift);
    uint32_t q = __umulhi(x, table.reciprocal);
    uint32_t first = x - q * table.num_sets;
    // The reciprocal is rounded down: q is the quotient, or one or two less.
    while (first >= table.num_sets) {
      first -= table.num_sets;
      ++q;
    }
    uint32_t second = first + set_shift(q, table.num_sets);
    if (second >= table.num_sets) second -= table.num_sets;
    place.first = first;
    place.second = second;
    const bool fits = key < table.key_bound;
    place.tag_first = fits ? 1 + 2 * q : 0;
    place.tag_second = fits ? 2 + 2 * q : 0;
  } else {
    const uint64_t h = mix64(key);
    place.first = __umulhi(static_cast<uint32_t>(h >> 32), table.num_sets);
    // Any other set, if there is one: a key with one set alone might find no room although the table has some.
    place.second = __umulhi(static_cast<uint32_t>(h >> 16), table.num_sets - 1);
    if (place.second >= place.first && table.num_sets > 1) ++place.second;
    const uint32_t tag = static_cast<uint32_t>(h) & 0xffffu;
    place.tag_first = tag == 0 ? 1 : tag;
    place.tag_second = place.tag_first;
  }
  return place;
}

// The key of a slot in use.
template <int kMode>
HPS_DEVICE uint64_t key_of(const HpsSetTable& table, uint32_t set, uint32_t way, uint32_t tag) {
  if (kMode == HPS_TAGS_HASHED) return pointer<const uint64_t>(table.keys)[static_cast<uint64_t>(set) * HPS_WAYS + way];
  const uint32_t q = (tag - 1) >> 1;
  uint32_t first = set;
  if ((tag & 1) == 0) {
    const uint32_t shift = set_shift(q, table.num_sets);
    first = set >= shift ? set - shift : set + table.num_sets - shift;
  }
  return unpermute(q * table.num_sets + first, table.key_mask, table.key_shift);
}
