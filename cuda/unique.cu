// Counts the distinct keys of a batch: for hit rates, which are over unique keys. One thread a key.
#include "include/placement.cuh"

namespace {

HPS_DEVICE uint64_t key_at(const HpsUnique& p, uint32_t position) {
  return p.key_bytes == 8 ? load_once(pointer<const uint64_t>(p.keys) + position)
                          : load_once(pointer<const uint32_t>(p.keys) + position);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(HPS_MODIFY_THREADS) unique(const __grid_constant__ HpsUnique p) {
  const uint32_t position = blockIdx.x * HPS_MODIFY_THREADS + threadIdx.x;
  bool is_new = false;
  if (position < p.num_keys) {
    const uint64_t key = key_at(p, position);
    // There are at least twice as many places as keys, so the search ends.
    for (uint32_t place = static_cast<uint32_t>(mix64(key)) & p.place_mask;; place = (place + 1) & p.place_mask) {
      const uint32_t other = atomicCAS(pointer<uint32_t>(p.places) + place, 0u, position + 1);
      is_new = other == 0;
      if (is_new || key_at(p, other - 1) == key) break;
    }
  }
  const uint32_t found = __ballot_sync(kWholeWarp, is_new);
  if (lane_id() == 0 && found != 0) atomicAdd(pointer<uint32_t>(p.count), static_cast<uint32_t>(__popc(found)));
}
