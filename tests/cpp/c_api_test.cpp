// The C interface, from a program that knows nothing of torch.  c_api_test TEST LIBRARY
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "test_store.h"

namespace {

constexpr auto kDim = TestStore::kDim;

bool says(const Api& api, const char* text) {
  if (std::strstr(api.last_error(), text) != nullptr) {
    return true;
  }
  std::fprintf(stderr, "the error is '%s'; it should mention '%s'\n", api.last_error(), text);
  return false;
}

int lookup(const Api& api, const TestStore& store, const std::vector<int64_t>& keys, std::vector<float>& rows) {
  rows.assign(keys.size() * kDim, -1.0F);
  return api.lookup(store.config().c_str(), "m", 0, kDim, keys.data(), 64, keys.size(), rows.data());
}

void require_rows(const std::vector<int64_t>& keys, const std::vector<float>& rows) {
  for (size_t i = 0; i < keys.size(); ++i) {
    for (int64_t element = 0; element < kDim; ++element) {
      REQUIRE(rows[i * kDim + static_cast<size_t>(element)] == TestStore::expected(keys[i], element));
    }
  }
}

void errors(const std::string& library) {
  const Api api(library);
  const TestStore store;
  const std::string config = store.config();
  const std::string missing = (store.folder() / "missing.json").string();
  char* text = nullptr;
  std::vector<int64_t> keys = {1};
  std::vector<float> rows(kDim);
  const auto look = [&](const char* model, int64_t table, int64_t dim, int bits) {
    return api.lookup(config.c_str(), model, table, dim, keys.data(), bits, keys.size(), rows.data());
  };

  REQUIRE(std::strcmp(api.last_error(), "") == 0);
  REQUIRE(api.open(missing.c_str()) != HPS_OK && says(api, "missing.json"));
  REQUIRE(api.stats(config.c_str(), &text) == HPS_ERROR_NOT_FOUND && text == nullptr);
  REQUIRE(api.refresh(config.c_str(), nullptr) == HPS_ERROR_NOT_FOUND);
  REQUIRE(api.close(config.c_str()) == HPS_ERROR_NOT_FOUND);
  REQUIRE(api.resolve(missing.c_str(), &text) != HPS_OK && text == nullptr && says(api, "missing.json"));

  REQUIRE(api.open(config.c_str()) == HPS_OK);
  REQUIRE(std::strcmp(api.last_error(), "") == 0);
  REQUIRE(look("m", 0, kDim, 64) == HPS_OK);
  REQUIRE(look("other", 0, kDim, 64) != HPS_OK && says(api, "other"));
  REQUIRE(look("m", 1, kDim, 64) != HPS_OK && says(api, "1"));
  REQUIRE(look("m", -1, kDim, 64) != HPS_OK && says(api, "-1"));
  REQUIRE(look("m", 0, kDim + 1, 64) == HPS_ERROR_INVALID_ARGUMENT && says(api, "5"));
  REQUIRE(look("m", 0, 0, 64) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(look("m", 0, kDim, 32) == HPS_ERROR_INVALID_ARGUMENT && says(api, "supportlonglong"));
  REQUIRE(look("m", 0, kDim, 16) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(look("m", 0, kDim, -64) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(look("m", 0, kDim, 64) == HPS_OK);
  REQUIRE(api.close(config.c_str()) == HPS_OK);
  REQUIRE(api.close(config.c_str()) == HPS_ERROR_NOT_FOUND);
}

void null_arguments(const std::string& library) {
  const Api api(library);
  const TestStore store;
  const std::string config = store.config();
  char* text = nullptr;
  const int64_t key = 0;
  float rows[kDim];

  REQUIRE(api.open(config.c_str()) == HPS_OK);
  REQUIRE(api.open(nullptr) == HPS_ERROR_INVALID_ARGUMENT && says(api, "ps_config_file"));
  REQUIRE(api.close(nullptr) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.stats(nullptr, &text) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.stats(config.c_str(), nullptr) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.resolve(config.c_str(), nullptr) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.refresh(nullptr, nullptr) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.refresh(config.c_str(), nullptr) == HPS_OK);
  REQUIRE(api.lookup(config.c_str(), nullptr, 0, kDim, &key, 64, 1, rows) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.lookup(config.c_str(), "m", 0, kDim, nullptr, 64, 1, rows) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.lookup(config.c_str(), "m", 0, kDim, &key, 64, 1, nullptr) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.lookup(config.c_str(), "m", 0, kDim, nullptr, 64, 0, nullptr) == HPS_OK);
  REQUIRE(api.open("\xff.json") == HPS_ERROR_INVALID_ARGUMENT && says(api, "UTF-8"));
  api.free_string(nullptr);
}

void last_error_is_per_thread(const std::string& library) {
  const Api api(library);
  REQUIRE(api.open("/nonexistent/one.json") != HPS_OK);
  std::thread([&] {
    REQUIRE(std::strcmp(api.last_error(), "") == 0);
    REQUIRE(api.open("/nonexistent/two.json") != HPS_OK && says(api, "two.json"));
  }).join();
  REQUIRE(says(api, "one.json"));
}

void lookup_rows(const std::string& library) {
  const Api api(library);
  const TestStore store;
  const std::vector<int64_t> keys = {0, 999, 500, 500, 1000, -1, INT64_MAX, INT64_MIN, 7};
  std::vector<float> rows;
  REQUIRE(lookup(api, store, keys, rows) == HPS_OK);  // opens the store
  require_rows(keys, rows);

  char* json = nullptr;
  REQUIRE(api.stats(store.config().c_str(), &json) == HPS_OK && json != nullptr);
  REQUIRE(std::strstr(json, "\"missing\"") != nullptr);
  api.free_string(json);

  char* path = nullptr;
  REQUIRE(api.resolve(store.config().c_str(), &path) == HPS_OK);
  REQUIRE(std::filesystem::equivalent(path, store.config()));
  api.free_string(path);

  REQUIRE(api.close_all() == HPS_OK);
  REQUIRE(api.close_all() == HPS_OK);
  REQUIRE(lookup(api, store, keys, rows) == HPS_OK);  // opens it again
  require_rows(keys, rows);
}

void change_rows(const std::string& library) {
  const Api api(library);
  const TestStore store;
  const std::string config = store.config();
  const std::vector<int64_t> keys = {5, 2000, 5};
  const std::vector<float> rows = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  REQUIRE(api.update(config.c_str(), "m", 0, kDim, keys.data(), 64, keys.size(), rows.data()) == HPS_OK);
  std::vector<float> found;
  REQUIRE(lookup(api, store, {2000, 5}, found) == HPS_OK);
  REQUIRE(found == std::vector<float>({5, 6, 7, 8, 9, 10, 11, 12}));
  REQUIRE(api.erase(config.c_str(), "m", 0, keys.data(), 64, 1) == HPS_OK);
  REQUIRE(lookup(api, store, {2000, 5}, found) == HPS_OK);
  REQUIRE(found[0] == 5 && found[4] == TestStore::kDefault);

  REQUIRE(api.update(config.c_str(), "m", 0, kDim + 1, keys.data(), 64, 1, rows.data()) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.update(config.c_str(), "m", 0, kDim, keys.data(), 32, 1, rows.data()) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.update(config.c_str(), "m", 0, kDim, keys.data(), 64, 1, nullptr) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.update(config.c_str(), "m", 0, kDim, nullptr, 64, 0, nullptr) == HPS_OK);
  REQUIRE(api.erase(config.c_str(), "m", 0, nullptr, 64, 1) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.erase(config.c_str(), "m", 1, keys.data(), 64, 1) == HPS_ERROR_INVALID_ARGUMENT);
  REQUIRE(api.erase(config.c_str(), "m", 0, keys.data(), 63, 1) == HPS_ERROR_INVALID_ARGUMENT && says(api, "63"));
}

void many_threads_open_once(const std::string& library) {
  const Api api(library);
  const TestStore store;
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      std::vector<float> rows;
      for (int64_t first = 0; first < 100; ++first) {
        std::vector<int64_t> keys;
        for (int64_t i = 0; i < 64; ++i) {
          keys.push_back((first * 131 + i * 17 + thread * 7) % (TestStore::kRows + 50));
        }
        REQUIRE(lookup(api, store, keys, rows) == HPS_OK);
        require_rows(keys, rows);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  REQUIRE(api.close(store.config().c_str()) == HPS_OK);
}

void reopen_after_correction(const std::string& library) {
  const Api api(library);
  const TestStore store;
  const std::vector<int64_t> keys = {3, 5000};
  std::vector<float> rows;
  store.write_config(kDim + 1);
  REQUIRE(api.open(store.config().c_str()) != HPS_OK);
  REQUIRE(lookup(api, store, keys, rows) != HPS_OK);
  store.write_config();
  REQUIRE(lookup(api, store, keys, rows) == HPS_OK);
  require_rows(keys, rows);
}

void exit_with_open_store(const std::string& library) {
  const Api api(library);
  // Not removed at exit: a server's files outlive it too.
  const auto* store = new TestStore;
  REQUIRE(api.open(store->config().c_str()) == HPS_OK);
  std::atexit([] { std::puts("leaving"); });
}

void exit_with_running_lookups(const std::string& library) {
  static const Api api(library);
  static const auto* store = new TestStore;
  static std::atomic<int> running{0};
  for (int thread = 0; thread < 4; ++thread) {
    std::thread([] {
      std::vector<int64_t> keys(4096);
      for (size_t i = 0; i < keys.size(); ++i) {
        keys[i] = static_cast<int64_t>(i);
      }
      std::vector<float> rows;
      for (bool first = true;; first = false) {
        REQUIRE(lookup(api, *store, keys, rows) == HPS_OK);
        running += first ? 1 : 0;
      }
    }).detach();
  }
  while (running < 4) {
    std::this_thread::yield();
  }
  // Returns from main while the threads look rows up.
}

// The first copy serves the operators, and both know it. Happens when one is preloaded and a Python package brings another.
void second_copy(const std::string& library) {
  const TestStore store;
  const std::string copy = (store.folder() / "libhps_torch.so").string();
  std::filesystem::copy_file(library, copy);
  const Api first(library);
  const Api second(copy);
  REQUIRE(first.version != second.version);
  REQUIRE(first.ops_library() != nullptr && second.ops_library() != nullptr);
  REQUIRE(std::filesystem::equivalent(first.ops_library(), library));
  REQUIRE(std::filesystem::equivalent(second.ops_library(), library));
}

const std::map<std::string, std::function<void(const std::string&)>> kTests = {
    {"errors", errors},
    {"null_arguments", null_arguments},
    {"last_error_is_per_thread", last_error_is_per_thread},
    {"lookup_rows", lookup_rows},
    {"change_rows", change_rows},
    {"many_threads_open_once", many_threads_open_once},
    {"reopen_after_correction", reopen_after_correction},
    {"exit_with_open_store", exit_with_open_store},
    {"exit_with_running_lookups", exit_with_running_lookups},
    {"second_copy", second_copy},
};

}  // namespace

int main(int argc, char** argv) {
  const auto test = argc == 3 ? kTests.find(argv[1]) : kTests.end();
  if (test == kTests.end()) {
    std::fprintf(stderr, "usage: c_api_test TEST LIBRARY\n");
    return 2;
  }
  test->second(argv[2]);
  return 0;
}
