// The shape of a table as crates/gpu/src/geometry.rs makes it, for tests of the kernels' arithmetic. Include after abi.h.
#pragma once

#include <cstdint>

inline HpsSetTable table_of(uint32_t num_sets, int mode) {
  HpsSetTable table{};
  table.num_sets = num_sets;
  table.reciprocal = 0xffffffffu / num_sets;
  if (mode == HPS_TAGS_EXACT) {
    uint32_t bits = 1;
    for (uint32_t b = 1; b <= 32; ++b) {
      if (((uint64_t{1} << b) - 1) / num_sets < 32767) bits = b;
    }
    table.key_mask = 0xffffffffu >> (32 - bits);
    table.key_shift = (bits + 1) / 2;
    table.key_bound = uint64_t{1} << bits;
  }
  return table;
}
