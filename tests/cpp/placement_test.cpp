// Where keys live on a GPU, checked on the host: cuda/include/placement.cuh compiled by the host's compiler.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <unordered_map>
#include <vector>

// As much of CUDA as the header needs; the functions that access a GPU's memory are never called.
#define __device__
#define __forceinline__ inline
struct uint4 {
  uint32_t x, y, z, w;
};
struct Index {
  uint32_t x;
};
static const Index threadIdx{0};
static inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
static inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) { return *p += v; }
template <typename T>
static void __stcs(T* p, const T& v) {
  *p = v;
}
#include "include/placement.cuh"
#include "table_shape.h"

namespace {

int failures = 0;

void check(bool holds, const char* what, uint64_t number) {
  if (!holds) {
    std::fprintf(stderr, "failed: %s (%llu)\n", what, static_cast<unsigned long long>(number));
    ++failures;
  }
}

uint64_t scramble(uint64_t x) { return mix64(x * 0x9e3779b97f4a7c15ull + 1); }

// Every key comes back from its tag in either set, and no two keys share set and tag.
void exact_tags_are_exact(uint32_t num_sets) {
  const HpsSetTable table = table_of(num_sets, HPS_TAGS_EXACT);
  std::unordered_map<uint64_t, uint64_t> seen;
  const uint64_t num_keys = table.key_bound < 100000 ? table.key_bound : 100000;
  for (uint64_t i = 0; i < num_keys; ++i) {
    const uint64_t key = table.key_bound == num_keys || i % 2 == 0 ? i : scramble(i) % table.key_bound;
    const Place place = place_of<HPS_TAGS_EXACT>(table, key);
    check(place.first < num_sets && place.second < num_sets, "sets are in the table", key);
    check(num_sets == 1 || place.first != place.second, "the sets of a key differ", key);
    check(place.tag_first > 0 && place.tag_second <= 0xffff, "tags take 16 bits", key);
    check(key_of<HPS_TAGS_EXACT>(table, place.first, 0, place.tag_first) == key, "the first tag gives the key back", key);
    check(key_of<HPS_TAGS_EXACT>(table, place.second, 0, place.tag_second) == key, "the second tag gives the key back", key);
    for (const uint64_t code :
         {uint64_t{place.first} << 16 | place.tag_first, uint64_t{place.second} << 16 | place.tag_second}) {
      const auto found = seen.emplace(code, key).first;
      check(found->second == key, "set and tag name one key", key);
    }
  }
  for (const uint64_t key : {table.key_bound, table.key_bound + 1, ~uint64_t{0}, uint64_t{1} << 32}) {
    if (key < table.key_bound) continue;
    const Place place = place_of<HPS_TAGS_EXACT>(table, key);
    check(place.tag_first == 0 && place.tag_second == 0, "keys beyond the bound have no tag", key);
    check(place.first < num_sets && place.second < num_sets, "their sets are in the table all the same", key);
  }
}

void hashed_keys_have_two_sets(uint32_t num_sets) {
  const HpsSetTable table = table_of(num_sets, HPS_TAGS_HASHED);
  std::vector<uint32_t> load(num_sets);
  for (uint64_t i = 0; i < 100000; ++i) {
    const uint64_t key = i % 3 == 0 ? i : i % 3 == 1 ? ~i : scramble(i);
    const Place place = place_of<HPS_TAGS_HASHED>(table, key);
    check(place.first < num_sets && place.second < num_sets, "sets are in the table", key);
    check(num_sets == 1 || place.first != place.second, "the sets of a key differ", key);
    check(place.tag_first == place.tag_second && place.tag_first > 0 && place.tag_first <= 0xffff, "a tag of 16 bits", key);
    ++load[place.first];
    ++load[place.second];
  }
  // Evenly spread: 200,000 choices among 64 sets, 3,125 each, with a deviation of 56.
  if (num_sets == 64) {
    for (const uint32_t n : load) check(n > 2700 && n < 3550, "sets are chosen evenly", n);
  }
}

// A table that holds all rows is filled as modify.cu does it, one key after the other; every key must find room.
template <int kMode>
void every_key_finds_room(uint32_t num_keys, uint64_t seed) {
  constexpr uint32_t kPlenty = 6;
  const uint32_t num_sets = static_cast<uint32_t>(num_keys / 0.95 + 1 + 16 + 15) / 16;
  const HpsSetTable table = table_of(num_sets, kMode);
  std::vector<std::vector<uint64_t>> sets(num_sets);
  for (uint32_t i = 0; i < num_keys; ++i) {
    const uint64_t key = kMode == HPS_TAGS_EXACT ? (i * uint64_t{7919} + seed) % num_keys : scramble(i + seed * num_keys);
    const Place place = place_of<kMode>(table, key);
    const uint32_t in_first = HPS_WAYS - static_cast<uint32_t>(sets[place.first].size());
    const uint32_t in_second = HPS_WAYS - static_cast<uint32_t>(sets[place.second].size());
    auto& chosen = in_first > kPlenty || in_first >= in_second ? sets[place.first] : sets[place.second];
    if (chosen.size() < HPS_WAYS) {
      chosen.push_back(key);
      continue;
    }
    bool has_moved = false;
    for (const uint32_t set : {place.first, place.second}) {
      for (uint64_t& resident : sets[set]) {
        const Place of_resident = place_of<kMode>(table, resident);
        const uint32_t other = of_resident.first == set ? of_resident.second : of_resident.first;
        if (has_moved || other == place.first || other == place.second || sets[other].size() == HPS_WAYS) continue;
        sets[other].push_back(resident);
        resident = key;
        has_moved = true;
      }
    }
    check(has_moved, "a key finds room", key);
  }
}

}  // namespace

int main() {
  for (const uint32_t num_sets : {1u, 2u, 3u, 7u, 64u, 330u, 4096u, 125000u, 131072u, 375000u, 268435455u}) {
    exact_tags_are_exact(num_sets);
    if (num_sets < 1000000) hashed_keys_have_two_sets(num_sets);
  }
  for (uint64_t seed = 0; seed < 100; ++seed) {
    every_key_finds_room<HPS_TAGS_EXACT>(5000, seed);
    every_key_finds_room<HPS_TAGS_HASHED>(5000, seed);
  }
  every_key_finds_room<HPS_TAGS_EXACT>(1000000, 1);
  every_key_finds_room<HPS_TAGS_HASHED>(1000000, 1);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
