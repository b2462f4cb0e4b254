// Copies rows of bytes with as many lanes a row as it has vectors, several rows in flight.
#pragma once
#include "device.cuh"

// `Vec` is the unit of access: uint4 (16 bytes) where rows are multiples of 16, else uint32_t.
// Copies, for each key i of a warp below kKeys, `row_bytes` bytes from the address `source` of lane (i * 32 / kKeys) to row i
// of `out`; source 0 copies nothing. `kLanes` lanes work on one row. Each lane calls `after_last_load` once it has read all
// that it will read, before it writes the last of it. kPasses: as in load_passing.
template <typename Vec, int kLanes, int kKeys, bool kPasses, typename AfterLastLoad>
HPS_DEVICE void copy_rows(uint64_t source, char* out, uint32_t row_bytes, AfterLastLoad after_last_load) {
  constexpr int kRowsAtOnce = 32 / kLanes;
  constexpr int kSteps = kKeys / kRowsAtOnce > 0 ? kKeys / kRowsAtOnce : 1;
  constexpr int kInFlight = kSteps < 8 ? kSteps : 8;
  const int num_vectors = static_cast<int>(row_bytes / sizeof(Vec));
  const int row = static_cast<int>(lane_id()) / kLanes;
  const int lane = static_cast<int>(lane_id()) % kLanes;
#pragma unroll 1
  for (int step = 0; step < kSteps; step += kInFlight) {
    const Vec* from[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      // Of a row that is none (more lanes than all keys need) a lane gets some other row's address.
      const int key = (step + i) * kRowsAtOnce + row;
      const uint64_t address = __shfl_sync(kWholeWarp, source, key * (32 / kKeys) & 31);
      from[i] = pointer<const Vec>(kRowsAtOnce > kKeys && key >= kKeys ? 0 : address);
    }
    Vec* to = reinterpret_cast<Vec*>(out) + static_cast<uint64_t>(step * kRowsAtOnce + row) * num_vectors;
    for (int vector = lane; vector < num_vectors; vector += kLanes) {
      Vec data[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (from[i] != nullptr) data[i] = load_passing<kPasses>(from[i] + vector);
      }
      if (step + kInFlight >= kSteps && vector + kLanes >= num_vectors) after_last_load();
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (from[i] != nullptr) store_streaming(to + static_cast<uint64_t>(i * kRowsAtOnce) * num_vectors + vector, data[i]);
      }
    }
  }
  if (lane >= num_vectors) after_last_load();
}

// Rows that one warp reads at once if kLanes lanes work on each.
template <int kLanes>
constexpr int rows_at_once() {
  return 32 / kLanes * (kLanes < 8 ? kLanes : 8);
}

// The same for rows whose targets lie anywhere: rows_at_once of them, that of lane i from `source` to `target` of lane i.
template <typename Vec, int kLanes, bool kPasses, typename AfterLastLoad>
HPS_DEVICE void copy_rows_anywhere(uint64_t source, uint64_t target, uint32_t row_bytes, AfterLastLoad after_last_load) {
  constexpr int kInFlight = rows_at_once<kLanes>() * kLanes / 32;
  const int num_vectors = static_cast<int>(row_bytes / sizeof(Vec));
  const int row = static_cast<int>(lane_id()) / kLanes;
  const int lane = static_cast<int>(lane_id()) % kLanes;
  const Vec* from[kInFlight];
  Vec* to[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    const int owner = i * (32 / kLanes) + row;
    from[i] = pointer<const Vec>(__shfl_sync(kWholeWarp, source, owner));
    to[i] = pointer<Vec>(__shfl_sync(kWholeWarp, target, owner));
  }
  for (int vector = lane; vector < num_vectors; vector += kLanes) {
    Vec data[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (from[i] != nullptr) data[i] = load_passing<kPasses>(from[i] + vector);
    }
    if (vector + kLanes >= num_vectors) after_last_load();
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (from[i] != nullptr) store_streaming(to[i] + vector, data[i]);
    }
  }
  if (lane >= num_vectors) after_last_load();
}
