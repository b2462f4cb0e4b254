#include "test_store.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace {

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    std::fprintf(stderr, "the library lacks %s\n", name);
    std::_Exit(1);
  }
}

}  // namespace

Api::Api(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    std::_Exit(1);
  }
  find(handle, "hps_version", version);
  find(handle, "hps_last_error", last_error);
  find(handle, "hps_open", open);
  find(handle, "hps_close", close);
  find(handle, "hps_close_all", close_all);
  find(handle, "hps_stats", stats);
  find(handle, "hps_refresh", refresh);
  find(handle, "hps_resolve", resolve);
  find(handle, "hps_lookup", lookup);
  find(handle, "hps_update", update);
  find(handle, "hps_erase", erase);
  find(handle, "hps_free_string", free_string);
  find(handle, "hps_ops_library", ops_library);
}

TestStore::TestStore() {
  std::string name = (std::filesystem::temp_directory_path() / "hps_c_api_XXXXXX").string();
  REQUIRE(mkdtemp(name.data()) != nullptr);
  folder_ = name;
  std::filesystem::create_directory(folder_ / "table");
  std::ofstream keys(folder_ / "table" / "key", std::ios::binary);
  std::ofstream rows(folder_ / "table" / "emb_vector", std::ios::binary);
  for (int64_t key = 0; key < kRows; ++key) {
    keys.write(reinterpret_cast<const char*>(&key), sizeof key);
    for (int64_t element = 0; element < kDim; ++element) {
      const float value = expected(key, element);
      rows.write(reinterpret_cast<const char*>(&value), sizeof value);
    }
  }
  write_config();
}

TestStore::~TestStore() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

float TestStore::expected(int64_t key, int64_t element) {
  return key >= 0 && key < kRows ? static_cast<float>(key) + static_cast<float>(element) / 8 : kDefault;
}

void TestStore::write_config(int64_t vector_size) const {
  std::ofstream(folder_ / "ps.json") << R"({
    "supportlonglong": true,
    "volatile_db": {"type": "parallel_hash_map", "num_partitions": 4, "initial_cache_rate": 0.5},
    "persistent_db": {"type": "rocks_db", "path": "rocksdb"},
    "models": [{
      "model": "m",
      "sparse_files": ["table"],
      "embedding_vecsize_per_table": [)"
                                     << vector_size << R"(],
      "maxnum_catfeature_query_per_table_per_sample": [1],
      "default_value_for_each_table": [)"
                                     << kDefault << R"(],
      "deployed_device_list": [0]
    }]
  })";
}
