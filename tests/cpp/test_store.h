// Helpers of the C tests: the library's functions found by name, and a small store on disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "hps.h"

// The functions of hps.h in one loaded copy of the library.
struct Api {
  explicit Api(const std::string& library);

  decltype(&hps_version) version;
  decltype(&hps_last_error) last_error;
  decltype(&hps_open) open;
  decltype(&hps_close) close;
  decltype(&hps_close_all) close_all;
  decltype(&hps_stats) stats;
  decltype(&hps_refresh) refresh;
  decltype(&hps_resolve) resolve;
  decltype(&hps_lookup) lookup;
  decltype(&hps_update) update;
  decltype(&hps_erase) erase;
  decltype(&hps_free_string) free_string;
  decltype(&hps_ops_library) ops_library;
};

// A folder with a table of rows 0 to kRows - 1 and a ps.json; removed at the end.
class TestStore {
 public:
  static constexpr int64_t kRows = 1000;
  static constexpr int64_t kDim = 4;
  static constexpr float kDefault = 0.25F;

  TestStore();
  ~TestStore();
  TestStore(const TestStore&) = delete;
  TestStore& operator=(const TestStore&) = delete;

  // The value of one element; the default row's if the table has no such key.
  static float expected(int64_t key, int64_t element);

  // Writes ps.json; `vector_size` other than kDim makes it a wrong one.
  void write_config(int64_t vector_size = kDim) const;

  const std::filesystem::path& folder() const { return folder_; }
  std::string config() const { return (folder_ / "ps.json").string(); }

 private:
  std::filesystem::path folder_;
};

// Ends the test with a message that names the place.
#define REQUIRE(condition)                                                           \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::_Exit(1);                                                                 \
    }                                                                                \
  } while (false)
