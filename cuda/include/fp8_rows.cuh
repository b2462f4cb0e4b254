// Rows of 8-bit floats. A row of `dim` numbers x is stored as
//
//   ceil(dim / 4) words of four numbers q in E4M3 (sign, 4 bits of exponent, 3 of mantissa), then their scale as a float32
//
// and read as float(q) * scale: see crates/gpu/src/fp8.rs, which makes them. (E4M3: Micikevicius et al., "FP8 Formats for Deep
// Learning", 2022.)
#pragma once
#include "row_copy.cuh"

// Stands for a vector type where rows are of this kind.
struct Fp8 {};

template <typename Vec>
constexpr bool kIsFp8 = false;
template <>
constexpr bool kIsFp8<Fp8> = true;

// An address with this bit is that of a row of float32: default rows are.
constexpr uint64_t kPlainRow = 1;

// The lowest byte of `q` as a number: its bits in the place of a float32's, whose exponents are 120 higher.
HPS_DEVICE uint32_t of_e4m3(uint32_t q, float scale) {
  const uint32_t magnitude = q & 0x7fu;
  const float value = __uint_as_float(magnitude << 20) * 0x1p120f * scale;
  const uint32_t bits = magnitude == 0x7fu ? 0x7fffffffu : __float_as_uint(value);
  return bits ^ (q & 0x80u) << 24;
}

// As copy_rows, but rows become float32. Rows of float32 are copied as they are.
template <int kLanes, int kKeys, typename AfterLastLoad>
HPS_DEVICE void copy_fp8_rows(uint64_t source, char* out, uint32_t dim, AfterLastLoad after_last_load) {
  constexpr int kRowsAtOnce = 32 / kLanes;
  constexpr int kSteps = kKeys / kRowsAtOnce > 0 ? kKeys / kRowsAtOnce : 1;
  constexpr int kInFlight = kSteps < 8 ? kSteps : 8;
  const uint32_t num_words = (dim + 3) / 4;
  const uint32_t row = lane_id() / kLanes;
  const uint32_t lane = lane_id() % kLanes;
  const bool is_whole = dim % 4 == 0;
  const uint64_t stored = (source & kPlainRow) != 0 ? 0 : source;
#pragma unroll 1
  for (int step = 0; step < kSteps; step += kInFlight) {
    const uint32_t* from[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int key = (step + i) * kRowsAtOnce + static_cast<int>(row);
      const uint64_t address = __shfl_sync(kWholeWarp, stored, key * (32 / kKeys) & 31);
      from[i] = pointer<const uint32_t>(kRowsAtOnce > kKeys && key >= kKeys ? 0 : address);
    }
    for (uint32_t word = lane; word < num_words; word += kLanes) {
      uint32_t data[kInFlight];
      uint32_t scales[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (from[i] == nullptr) continue;
        data[i] = load_once(from[i] + word);
        scales[i] = load_once(from[i] + num_words);
      }
      if (step + kInFlight >= kSteps && word + kLanes >= num_words) after_last_load();
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (from[i] == nullptr) continue;
        const float scale = __uint_as_float(scales[i]);
        uint4 four;
        four.x = of_e4m3(data[i], scale);
        four.y = of_e4m3(data[i] >> 8, scale);
        four.z = of_e4m3(data[i] >> 16, scale);
        four.w = of_e4m3(data[i] >> 24, scale);
        const uint64_t at = static_cast<uint64_t>((step + i) * kRowsAtOnce + static_cast<int>(row)) * dim + word * 4;
        uint32_t* to = reinterpret_cast<uint32_t*>(out) + at;
        if (is_whole) {
          store_streaming(reinterpret_cast<uint4*>(to), four);
        } else {
          store_streaming(to, four.x);
          if (word * 4 + 1 < dim) store_streaming(to + 1, four.y);
          if (word * 4 + 2 < dim) store_streaming(to + 2, four.z);
          if (word * 4 + 3 < dim) store_streaming(to + 3, four.w);
        }
      }
    }
  }
  if (lane >= num_words) after_last_load();
  uint32_t plain = __ballot_sync(kWholeWarp, (source & kPlainRow) != 0 && lane_id() % (32 / kKeys) == 0);
  for (; plain != 0; plain &= plain - 1) {
    const int owner = __ffs(static_cast<int>(plain)) - 1;
    const uint32_t* from = pointer<const uint32_t>(__shfl_sync(kWholeWarp, source, owner) ^ kPlainRow);
    uint32_t* to = reinterpret_cast<uint32_t*>(out) + static_cast<uint64_t>(owner / (32 / kKeys)) * dim;
    for (uint32_t i = lane_id(); i < dim; i += 32) store_streaming(to + i, load_once(from + i));
  }
}
