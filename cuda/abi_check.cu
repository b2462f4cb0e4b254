// For tests: the device's view of abi.h, in the order of crates/gpu/src/abi_facts.rs. One thread.
#include "include/device.cuh"

#define HPS_SIZE(type) *fact++ = sizeof(type)
// The headers that have offsetof are not there.
#define HPS_OFFSET(type, field) *fact++ = reinterpret_cast<uint64_t>(&pointer<type>(4096)->field) - 4096

extern "C" __global__ void abi_check(uint64_t facts) {
  uint64_t* fact = pointer<uint64_t>(facts);
  HPS_SIZE(HpsSetTable);
  HPS_OFFSET(HpsSetTable, key_bound);
  HPS_OFFSET(HpsSetTable, key_shift);
  HPS_SIZE(HpsWriters);
  HPS_SIZE(HpsLookupCounters);
  HPS_SIZE(HpsMissList);
  HPS_OFFSET(HpsMissList, sequence);
  HPS_SIZE(HpsLookup);
  HPS_OFFSET(HpsLookup, keys);
  HPS_OFFSET(HpsLookup, misses);
  HPS_OFFSET(HpsLookup, fetch);
  HPS_OFFSET(HpsLookup, row_bytes);
  HPS_OFFSET(HpsLookup, is_fp8);
  HPS_SIZE(HpsLookups);
  HPS_SIZE(HpsFetchEntry);
  HPS_OFFSET(HpsFetchEntry, begun);
  HPS_OFFSET(HpsFetchList, counts);
  HPS_SIZE(HpsWantedKeys);
  HPS_SIZE(HpsModify);
  HPS_OFFSET(HpsModify, keys);
  HPS_OFFSET(HpsModify, seed);
  HPS_SIZE(HpsModifyResults);
  HPS_SIZE(HpsUnique);
  HPS_OFFSET(HpsUnique, place_mask);
  HPS_SIZE(HpsScatter);
  HPS_OFFSET(HpsScatter, row_bytes);
  HPS_SIZE(HpsDump);
  HPS_OFFSET(HpsDump, num_sets);
  *fact++ = HPS_WAYS;
  *fact++ = HPS_WANTED_KEYS;
  *fact++ = HPS_ERASE;
  *fact++ = HPS_TAGS_HASHED;
}
