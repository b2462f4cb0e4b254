// Lists the keys that a range of a table's sets holds, in no order. One thread a slot. Writers must be waited for.
#include "include/set_table.cuh"

namespace {

template <int kMode>
HPS_DEVICE void dump(const HpsDump& p) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t set = p.first_set + i / HPS_WAYS;
  const uint32_t way = i % HPS_WAYS;
  uint32_t tag = 0;
  if (i / HPS_WAYS < p.num_sets) tag = pointer<const uint16_t>(p.table.tags)[set * HPS_WAYS + way];
  const uint32_t held = __ballot_sync(kWholeWarp, tag != 0);
  if (held == 0) return;
  uint64_t base = 0;
  if (lane_id() == 0) base = atomic_add(pointer<uint64_t>(p.count), static_cast<uint64_t>(__popc(held)));
  base = __shfl_sync(kWholeWarp, base, 0);
  const uint64_t at = base + static_cast<uint64_t>(__popc(held & ((1u << lane_id()) - 1u)));
  if (tag != 0 && at < p.capacity) pointer<uint64_t>(p.keys)[at] = key_of<kMode>(p.table, set, way, tag);
}

}  // namespace

extern "C" __global__ void dump_exact(const __grid_constant__ HpsDump p) { dump<HPS_TAGS_EXACT>(p); }
extern "C" __global__ void dump_hashed(const __grid_constant__ HpsDump p) { dump<HPS_TAGS_HASHED>(p); }
