// Rows in host memory that a large lookup has found: read in the order of their addresses, which the GPU translates faster than
// when they come in any order (measured on an H100, 8 GB of rows of 128 bytes: 106 instead of 42 million rows a second), as long
// as the rows that are under way at a time lie close to each other. Three launches after the lookup's, in the same stream:
//
//   fetch_order   one block: where each bucket begins
//   fetch_place   any grid: entries into their buckets
//   fetch_<tags>_<vector bytes>x<lanes a row>   HPS_FETCH_ROWS at a time: rows to their places in the caller's output
//
// The GPU finds pages of host memory by tables in its own memory. Rows arrive half as fast after 32 MB of other data have passed
// through the second-level cache (measured on an H100, rows of 128 and of 512 bytes, any kind of pinned memory), as if entries of
// these tables were read through it and pushed out. So large lookups of tables with a second part ask for everything they read to
// be evicted first (lookup_..._passing): a million keys of which 84,000 are missed (rows of 128 bytes), one lookup after the other,
// take 1.02 instead of 1.42 ms each, on one machine in one run. Other work on the GPU in between undoes that.
//
// A lookup reads a row's address now, and the row is read later. So each entry says what the second table's writers showed before
// its address was read: if they show the same after the row was read, nobody has changed anything (set_table.cuh, step 3). Else
// the key is looked up again.
#include "include/reading.cuh"
#include "include/row_copy.cuh"

namespace {

HPS_DEVICE uint32_t* buckets_of(const HpsFetchList& list) { return pointer<uint32_t>(list.buckets); }

// Looks a key up again, by the whole warp, until its sets do not change meanwhile.
template <int kMode>
__device__ __noinline__ void fetch_again(const HpsLookup& p, uint32_t position) {
  const uint64_t key = p.key_bytes == 8 ? load_once(pointer<const uint64_t>(p.keys) + position)
                                        : load_once(pointer<const uint32_t>(p.keys) + position);
  const Place place = place_of<kMode>(p.first, key);
  const Place place_second = place_of<kMode>(p.second, key);
  const uint64_t out = p.out + static_cast<uint64_t>(position) * p.row_bytes;
  bool pending = true;
  // What lanes have copied of the row so far may lie where others copy now.
  __syncwarp();
  while (pending) {
    const Versions versions = read_versions<kMode>(p, place, place_second);
    // Nobody copies before all have read versions, or reads them again before all have copied: a lane that is ahead must not find
    // another version than one that is behind, and both be content.
    __syncwarp();
    const uint64_t row = resolve<kMode>(p, key, place, place_second).row;
    if (row != 0) {
      for (uint32_t i = lane_id(); i < p.row_bytes / 4; i += 32) {
        store_streaming(pointer<uint32_t>(out) + i, load_once(pointer<const uint32_t>(row) + i));
      }
    }
    fence();
    __syncwarp();
    pending = __any_sync(kWholeWarp, !are_current(p, place, place_second, versions));
  }
}

// The next entries that nobody has taken. Warps take them in order, so that rows under way lie close to each other.
template <int kRows>
HPS_DEVICE uint32_t take(const HpsFetchList& list) {
  uint32_t first = 0;
  if (lane_id() == 0) first = atomicAdd(pointer<uint32_t>(list.counts) + 2, static_cast<uint32_t>(kRows));
  return __shfl_sync(kWholeWarp, first, 0);
}

template <int kMode, typename Vec, int kLanes>
HPS_DEVICE void fetch(const HpsLookup& p) {
  constexpr uint32_t kRows = rows_at_once<kLanes>();
  const HpsFetchList& list = p.fetch;
  // The entries are in place: ready for the next lookup.
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < HPS_FETCH_BUCKETS; i += gridDim.x * blockDim.x) {
    buckets_of(list)[i] = 0;
  }
  const uint32_t count = load_once(pointer<const uint32_t>(list.counts) + 1);
  const uint32_t* writers = pointer<const uint32_t>(p.second.writers);
  for (uint32_t first = take<kRows>(list); first < count; first = take<kRows>(list)) {
    const uint32_t i = first + lane_id();
    const bool is_entry = lane_id() < kRows && i < count;
    HpsFetchEntry entry{0, 0, 0};
    if (is_entry) entry = pointer<const HpsFetchEntry>(list.sorted)[i];
    uint32_t begun = entry.begun;
    copy_rows_anywhere<Vec, kLanes, true>(entry.address, p.out + static_cast<uint64_t>(entry.position) * p.row_bytes,
                                          p.row_bytes, [&] {
                                            fence();
                                            begun = load_relaxed(writers);
                                          });
    // Lanes copy parts of each other's rows, so all must have seen the same, which is what every entry says.
    const bool is_same = begun == __shfl_sync(kWholeWarp, begun, 0);
    if (__all_sync(kWholeWarp, is_same && (!is_entry || entry.begun == begun))) continue;
    for (uint32_t lane = 0; lane < kRows; ++lane) {
      if (first + lane < count) fetch_again<kMode>(p, __shfl_sync(kWholeWarp, entry.position, static_cast<int>(lane)));
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(HPS_FETCH_ORDER_THREADS) fetch_order(const __grid_constant__ HpsLookup p) {
  constexpr uint32_t kEach = HPS_FETCH_BUCKETS / HPS_FETCH_ORDER_THREADS;
  __shared__ uint32_t before_warp[32];
  uint32_t* mine = buckets_of(p.fetch) + threadIdx.x * kEach;
  uint32_t sum = 0;
  for (uint32_t i = 0; i < kEach; ++i) sum += mine[i];
  // Sums of the threads up to this one, within the warp, then of the warps before it.
  uint32_t upto = sum;
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_sync(kWholeWarp, upto, static_cast<int>(lane_id() - distance));
    if (lane_id() >= distance) upto += other;
  }
  if (lane_id() == 31) before_warp[threadIdx.x / 32] = upto;
  __syncthreads();
  uint32_t begin = upto - sum;
  for (uint32_t warp = 0; warp < threadIdx.x / 32; ++warp) begin += before_warp[warp];
  for (uint32_t i = 0; i < kEach; ++i) {
    const uint32_t number = mine[i];
    mine[i] = begin;
    begin += number;
  }
  if (threadIdx.x == 0) {
    uint32_t* counts = pointer<uint32_t>(p.fetch.counts);
    counts[1] = counts[0];
    counts[0] = 0;
    counts[2] = 0;
  }
}

extern "C" __global__ void __launch_bounds__(HPS_FETCH_PLACE_THREADS) fetch_place(const __grid_constant__ HpsLookup p) {
  const uint32_t count = load_once(pointer<const uint32_t>(p.fetch.counts) + 1);
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const HpsFetchEntry entry = pointer<const HpsFetchEntry>(p.fetch.entries)[i];
    pointer<HpsFetchEntry>(p.fetch.sorted)[atomicAdd(buckets_of(p.fetch) + fetch_bucket(entry.address), 1u)] = entry;
  }
}

#define HPS_FETCH(name, mode, vector, lanes)                                                                  \
  extern "C" __global__ void __launch_bounds__(HPS_FETCH_THREADS) name(const __grid_constant__ HpsLookup p) { \
    fetch<mode, vector, lanes>(p);                                                                            \
  }

HPS_FETCH(fetch_exact_16x4, HPS_TAGS_EXACT, uint4, 4)
HPS_FETCH(fetch_exact_16x8, HPS_TAGS_EXACT, uint4, 8)
HPS_FETCH(fetch_exact_16x16, HPS_TAGS_EXACT, uint4, 16)
HPS_FETCH(fetch_exact_16x32, HPS_TAGS_EXACT, uint4, 32)
HPS_FETCH(fetch_exact_4x8, HPS_TAGS_EXACT, uint32_t, 8)
HPS_FETCH(fetch_exact_4x32, HPS_TAGS_EXACT, uint32_t, 32)
HPS_FETCH(fetch_hashed_16x4, HPS_TAGS_HASHED, uint4, 4)
HPS_FETCH(fetch_hashed_16x8, HPS_TAGS_HASHED, uint4, 8)
HPS_FETCH(fetch_hashed_16x16, HPS_TAGS_HASHED, uint4, 16)
HPS_FETCH(fetch_hashed_16x32, HPS_TAGS_HASHED, uint4, 32)
HPS_FETCH(fetch_hashed_4x8, HPS_TAGS_HASHED, uint32_t, 8)
HPS_FETCH(fetch_hashed_4x32, HPS_TAGS_HASHED, uint32_t, 32)
