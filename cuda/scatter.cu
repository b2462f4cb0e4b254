// Copies staged rows to the caller's rows. One warp a row; grid: any, rows are taken in turns.
#include "include/row_copy.cuh"

extern "C" __global__ void __launch_bounds__(HPS_MODIFY_THREADS) scatter(const __grid_constant__ HpsScatter p) {
  const uint32_t num_warps = gridDim.x * (HPS_MODIFY_THREADS / 32);
  for (uint32_t i = (blockIdx.x * HPS_MODIFY_THREADS + threadIdx.x) / 32; i < p.num_rows; i += num_warps) {
    const uint32_t position = load_once(pointer<const uint32_t>(p.positions) + i);
    const char* from = pointer<const char>(p.rows) + static_cast<uint64_t>(i) * p.row_bytes;
    char* to = pointer<char>(p.out) + static_cast<uint64_t>(position) * p.row_bytes;
    if (p.row_bytes % 16 == 0) {
      for (uint32_t v = lane_id(); v < p.row_bytes / 16; v += 32) {
        store_streaming(reinterpret_cast<uint4*>(to) + v, load_once(reinterpret_cast<const uint4*>(from) + v));
      }
    } else {
      for (uint32_t v = lane_id(); v < p.row_bytes / 4; v += 32) {
        store_streaming(reinterpret_cast<uint32_t*>(to) + v, load_once(reinterpret_cast<const uint32_t*>(from) + v));
      }
    }
  }
}
