// Lookups in hash maps of others, on the workload of crates/host/tests/bench.rs: random 64-bit keys, each with a row of float32; a batch of
// keys is looked up and the rows are copied, by one thread, in a plain loop.
//
//   maps ROWS DIM KEYS ROUNDS       prints the name of each map and ns per key, medians
#include <absl/container/flat_hash_map.h>

#include <algorithm>
#include <boost/version.hpp>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <vector>
#if BOOST_VERSION >= 108100
#include <boost/unordered/unordered_flat_map.hpp>
#endif

namespace {

constexpr std::size_t kBatches = 16;

/// SplitMix64 of a counter.
std::uint64_t random_number(std::uint64_t i) {
  std::uint64_t x = i * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

struct Workload {
  std::size_t rows, dim, keys, rounds;

  std::uint64_t key(std::size_t row) const { return random_number(row + 1); }

  std::vector<std::uint64_t> batch(std::size_t number) const {
    std::vector<std::uint64_t> keys_of(keys);
    for (std::size_t i = 0; i < keys; ++i) keys_of[i] = key(random_number((number + 7) << 32 | i) % rows);
    return keys_of;
  }
};

/// A map from key to number of row, and the rows in one array.
template <class Map>
void measure(const char* name, const Workload& work, const std::vector<float>& rows) {
  Map map;
  map.reserve(work.rows);
  for (std::size_t row = 0; row < work.rows; ++row) map.emplace(work.key(row), static_cast<std::uint32_t>(row));
  std::vector<std::vector<std::uint64_t>> batches;
  for (std::size_t number = 0; number < kBatches; ++number) batches.push_back(work.batch(number));
  std::vector<float> found(work.keys * work.dim);
  std::vector<double> times;
  for (std::size_t round = 0; round < work.rounds; ++round) {
    const auto& keys = batches[round % kBatches];
    const auto began = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < keys.size(); ++i) {
      const auto at = map.find(keys[i]);
      if (at != map.end()) std::memcpy(&found[i * work.dim], &rows[at->second * work.dim], work.dim * sizeof(float));
    }
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - began;
    times.push_back(took.count() / static_cast<double>(work.keys));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  std::printf("%-28s %8.1f ns per key\n", name, times[times.size() / 2]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: maps ROWS DIM KEYS ROUNDS\n");
    return 2;
  }
  const auto number = [&](int i) { return static_cast<std::size_t>(std::strtoull(argv[i], nullptr, 10)); };
  const Workload work{number(1), number(2), number(3), number(4)};
  const std::vector<float> rows(work.rows * work.dim, 1.0F);
  measure<absl::flat_hash_map<std::uint64_t, std::uint32_t>>("absl::flat_hash_map", work, rows);
#if BOOST_VERSION >= 108100
  measure<boost::unordered_flat_map<std::uint64_t, std::uint32_t>>("boost::unordered_flat_map", work, rows);
#endif
  measure<std::unordered_map<std::uint64_t, std::uint32_t>>("std::unordered_map", work, rows);
}
