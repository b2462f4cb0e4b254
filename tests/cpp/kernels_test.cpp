// The kernels that change tables and look keys up, run on the host: see emulator/emulator.h.
#include "emulator/emulator.h"

// The order matters: the kernels are written in the language that the emulator defines.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "dump.cu"
#include "fetch.cu"
#include "lookup.cu"
#include "modify.cu"
#include "scatter.cu"
#include "unique.cu"

// Of their structs.
#include "table_shape.h"

namespace {

using emulator::Emulator;
using emulator::Order;

// More than any of these tests needs, by far.
constexpr uint64_t kMostTurns = 400'000'000;

int failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what.c_str());
  if (++failures > 10) std::exit(1);
}

uint64_t scramble(uint64_t x) { return mix64(x * 0x9e3779b97f4a7c15ull + 1); }

template <typename T>
uint64_t address(std::vector<T>& items) {
  return reinterpret_cast<uint64_t>(items.data());
}

// Memory of an HpsSetTable, as crates/gpu/src/set_table.rs takes it.
class Table {
 public:
  Table(uint32_t num_sets, int mode, uint32_t row_bytes, bool is_map = false)
      : mode_(mode),
        row_bytes_(row_bytes),
        tags_(num_sets * HPS_WAYS),
        keys_(mode == HPS_TAGS_HASHED ? num_sets * HPS_WAYS : 0),
        marks_(num_sets),
        versions_(num_sets),
        rows_(static_cast<size_t>(num_sets) * HPS_WAYS * row_bytes / sizeof(uint4) + 1),
        table_(table_of(num_sets, mode)) {
    table_.tags = address(tags_);
    table_.keys = address(keys_);
    table_.marks = address(marks_);
    table_.versions = address(versions_);
    table_.writers = reinterpret_cast<uint64_t>(&writers_);
    table_.rows = address(rows_);
    table_.is_map = is_map ? 1 : 0;
  }

  const HpsSetTable& get() const { return table_; }
  int mode() const { return mode_; }
  uint32_t row_bytes() const { return row_bytes_; }
  HpsModifyResults& results() { return results_; }

  // As if a writer was at work all the time, so that lookups read key by key.
  void seem_written(bool is_written) { writers_.begun = writers_.ended + (is_written ? 1 : 0); }

  std::vector<uint32_t>& marks() { return marks_; }

  // How often sets were locked by writers.
  uint32_t times_locked() const {
    uint32_t sum = 0;
    for (const uint32_t version : versions_) sum += version / 2;
    return sum;
  }

  // Every key and where its row lies. Nobody may be at work.
  std::map<uint64_t, const char*> contents() const {
    std::map<uint64_t, const char*> all;
    check(writers_.begun == writers_.ended, "every writer has ended");
    for (uint32_t set = 0; set < table_.num_sets; ++set) {
      check(versions_[set] % 2 == 0, "no set is locked");
      for (uint32_t way = 0; way < HPS_WAYS; ++way) {
        const uint32_t slot = set * HPS_WAYS + way;
        const uint32_t tag = tags_[slot];
        if (tag == 0) continue;
        const uint64_t key = mode_ == HPS_TAGS_EXACT ? key_of<HPS_TAGS_EXACT>(table_, set, way, tag)
                                                     : key_of<HPS_TAGS_HASHED>(table_, set, way, tag);
        check(all.emplace(key, row_of(table_, slot, row_bytes_)).second, "a key is in one slot only");
      }
    }
    return all;
  }

 private:
  int mode_;
  uint32_t row_bytes_;
  std::vector<uint16_t> tags_;
  std::vector<uint64_t> keys_;
  std::vector<uint32_t> marks_, versions_;
  std::vector<uint4> rows_;
  HpsWriters writers_{};
  HpsModifyResults results_{};
  HpsSetTable table_;
};

// A row that tells its key and its version in every word.
std::vector<uint32_t> row_for(uint64_t key, uint32_t version, uint32_t row_bytes) {
  std::vector<uint32_t> row(row_bytes / 4);
  for (uint32_t i = 0; i < row.size(); ++i) row[i] = static_cast<uint32_t>(scramble(key ^ i)) * 31 + version;
  return row;
}

// The version of a row that is one version of this key's row as a whole; -1 if it is not.
int version_of_row(uint64_t key, const char* row, uint32_t row_bytes) {
  std::vector<uint32_t> words(row_bytes / 4);
  std::memcpy(words.data(), row, row_bytes);
  const std::vector<uint32_t> zero = row_for(key, 0, row_bytes);
  const uint32_t version = words[0] - zero[0];
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] - zero[i] != version || version > 1000) return -1;
  }
  return static_cast<int>(version);
}

// What one launch of `modify` brings.
struct Change {
  std::vector<uint64_t> keys;
  std::vector<uint32_t> rows;
  HpsModify modify{};

  Change(Table& table, HpsModifyMode mode, std::vector<uint64_t> of, uint32_t version) : keys(std::move(of)) {
    for (const uint64_t key : keys) {
      const std::vector<uint32_t> row = row_for(key, version, table.row_bytes());
      rows.insert(rows.end(), row.begin(), row.end());
    }
    modify.table = table.get();
    modify.keys = address(keys);
    modify.rows = address(rows);
    modify.results = reinterpret_cast<uint64_t>(&table.results());
    modify.num_keys = static_cast<uint32_t>(keys.size());
    modify.row_bytes = table.row_bytes();
    modify.mode = mode;
    modify.mark = mode == HPS_INSERT_IF_ABSENT ? 0 : 3;
    modify.evict_proven = 16;
    modify.forget = 8;
    modify.displace = mode == HPS_UPSERT ? 4096 : 0;
    modify.displace_far = mode == HPS_UPSERT ? 1 : 0;
  }

  void launch(Emulator& on, int mode, uint32_t most_blocks, uint64_t delay = 0) const {
    const uint32_t blocks = std::min<uint32_t>((modify.num_keys + 3) / 4, most_blocks);
    const auto kernel = [this, mode] { mode == HPS_TAGS_EXACT ? modify_exact(modify) : modify_hashed(modify); };
    on.launch(blocks, HPS_MODIFY_THREADS, kernel, delay);
  }
};

// One launch of a lookup kernel.
struct Lookup {
  std::vector<uint64_t> keys;
  std::vector<uint4> out;
  std::vector<uint32_t> default_row;
  std::vector<HpsLookupCounters> counters;
  std::vector<HpsFetchEntry> entries;
  std::vector<uint32_t> buckets, counts;
  HpsLookup lookup{};

  Lookup(const Table& first, const Table* second, uint32_t row_bytes, std::vector<uint64_t> of)
      : keys(std::move(of)),
        out(keys.size() * row_bytes / sizeof(uint4) + 1),
        default_row(row_bytes / 4, 0xabababab),
        counters(HPS_COUNTER_COPIES) {
    lookup.first = first.get();
    if (second != nullptr) lookup.second = second->get();
    lookup.keys = address(keys);
    lookup.out = address(out);
    lookup.default_row = address(default_row);
    lookup.counters = address(counters);
    lookup.num_keys = static_cast<uint32_t>(keys.size());
    lookup.key_bytes = 8;
    lookup.row_bytes = row_bytes;
    lookup.out_row_bytes = row_bytes;
  }

  // Leaves rows of the second table to be fetched.
  void leave_rows() {
    entries.resize(2 * keys.size());
    buckets.resize(HPS_FETCH_BUCKETS);
    counts.resize(3);
    lookup.fetch.entries = address(entries);
    lookup.fetch.sorted = lookup.fetch.entries + keys.size() * sizeof(HpsFetchEntry);
    lookup.fetch.buckets = address(buckets);
    lookup.fetch.counts = address(counts);
  }

  // The launches after the lookup's: each after the one before has ended, as in a stream.
  void fetch(Emulator& on, int mode) const {
    // More lanes than a row has vectors leave some without work, and take fewer rows a warp.
    on.launch(4, HPS_FETCH_THREADS,
              [this, mode] { mode == HPS_TAGS_EXACT ? fetch_exact_16x16(lookup) : fetch_hashed_16x4(lookup); });
  }
  void order(uint64_t seed) const {
    Emulator first(seed);
    first.launch(1, HPS_FETCH_ORDER_THREADS, [this] { fetch_order(lookup); });
    if (!first.run(kMostTurns)) std::exit(1);
    Emulator second(seed);
    second.launch(2, HPS_FETCH_PLACE_THREADS, [this] { fetch_place(lookup); });
    if (!second.run(kMostTurns)) std::exit(1);
  }

  void launch(Emulator& on, int mode) const {
    const uint32_t warps = (lookup.num_keys + HPS_KEYS_PER_WARP_SMALL - 1) / HPS_KEYS_PER_WARP_SMALL;
    on.launch(warps, 32,
              [this, mode] { mode == HPS_TAGS_EXACT ? lookup_exact_16x4_small(lookup) : lookup_hashed_16x4_small(lookup); });
  }

  const char* row(size_t i) const { return reinterpret_cast<const char*>(out.data()) + i * lookup.row_bytes; }

  uint64_t total(uint64_t HpsLookupCounters::* which) const {
    uint64_t sum = 0;
    for (const HpsLookupCounters& copy : counters) sum += copy.*which;
    return sum;
  }

  bool is_default(size_t i) const { return std::memcmp(row(i), default_row.data(), lookup.row_bytes) == 0; }
};

void run(Emulator& emulator, const std::string& what) {
  if (emulator.run(kMostTurns)) return;
  std::fprintf(stderr, "failed: %s does not end\n", what.c_str());
  std::exit(1);
}

std::vector<uint64_t> some_keys(uint32_t count, int mode, uint64_t seed) {
  std::vector<uint64_t> keys(count);
  for (uint32_t i = 0; i < count; ++i) keys[i] = mode == HPS_TAGS_EXACT ? i : scramble(seed << 32 | i);
  return keys;
}

// Keys that have one tag, and with few sets often the same ones: only the whole key tells them apart.
std::vector<uint64_t> keys_of_one_tag(uint32_t count, uint64_t seed) {
  const auto tag_of = [](uint64_t key) {
    const uint32_t tag = static_cast<uint32_t>(mix64(key)) & 0xffffu;
    return tag == 0 ? 1 : tag;
  };
  std::vector<uint64_t> keys;
  for (uint64_t key = seed << 40; keys.size() < count; ++key) {
    if (keys.empty() || tag_of(key) == tag_of(keys[0])) keys.push_back(key);
  }
  return keys;
}

std::string named(const char* what, int mode, uint32_t row_bytes, uint64_t seed) {
  return std::string(what) + (mode == HPS_TAGS_EXACT ? ", exact" : ", hashed") + ", rows of " + std::to_string(row_bytes) +
         ", seed " + std::to_string(seed);
}

// Adds rows of version 1, as many as there is room for.
void fill_table(Table& table, std::vector<uint64_t> keys, uint32_t mark, uint64_t seed, const std::string& what) {
  Emulator emulator(seed);
  Change fill(table, HPS_UPSERT, std::move(keys), 1);
  fill.modify.mark = mark;
  fill.launch(emulator, table.mode(), 8);
  run(emulator, what);
}

// Many warps fill a small table that must hold every row, at once.
void every_key_finds_room(int mode, uint32_t row_bytes, uint64_t seed, Order order) {
  const std::string what = named("every key finds room", mode, row_bytes, seed);
  constexpr uint32_t kSets = 20;
  Table table(kSets, mode, row_bytes);
  const std::vector<uint64_t> keys = some_keys(kSets * HPS_WAYS * 95 / 100, mode, seed);
  Emulator emulator(seed, order);
  const Change fill(table, HPS_UPSERT, keys, 1);
  fill.launch(emulator, mode, 32);
  run(emulator, what);
  check(table.results().refused == 0, what + ": none is refused");
  check(table.results().added == keys.size(), what + ": all are added");
  const auto contents = table.contents();
  check(contents.size() == keys.size(), what + ": all are held");
  for (const uint64_t key : keys) {
    const auto found = contents.find(key);
    check(found != contents.end() && version_of_row(key, found->second, row_bytes) == 1, what + ": rows are right");
  }
}

// Rows refused by tables that were filled to the last slot but one, in all: without and with far moves.
uint64_t refused_nearly_full[2] = {0, 0};

// Beyond what rows that move to their other set can make room for, rows that are in their way move first.
void rows_in_the_way_move_first(int mode, uint64_t seed) {
  const std::string what = named("nearly full", mode, 8, seed);
  constexpr uint32_t kSets = 30;
  uint64_t refused[2] = {0, 0};
  for (const uint32_t far : {0u, 1u}) {
    Table table(kSets, mode, 8);
    Emulator emulator(seed);
    Change fill(table, HPS_UPSERT, some_keys(kSets * HPS_WAYS - 1, mode, seed), 1);
    fill.modify.displace_far = far;
    fill.modify.displace = 30;
    fill.launch(emulator, mode, 4);
    run(emulator, what);
    refused[far] = table.results().refused;
    check(table.contents().size() + refused[far] == fill.keys.size(), what + ": held or refused");
  }
  for (const uint32_t far : {0u, 1u}) refused_nearly_full[far] += refused[far];
}

// A row that was used is not pushed out by one that nobody has asked for twice, but with the chance that is given.
void rows_in_use_stay(int mode, uint64_t seed) {
  const std::string what = named("rows in use", mode, 16, seed);
  const std::vector<uint64_t> keys = some_keys(400, mode, seed);
  const std::vector<uint64_t> old(keys.begin(), keys.begin() + 64), fresh(keys.begin() + 64, keys.begin() + 264);
  for (const uint32_t mark : {0u, 3u}) {
    Table table(4, mode, 16);
    Emulator first(seed);
    Change fill(table, HPS_UPSERT, old, 1);
    fill.modify.mark = mark;
    fill.launch(first, mode, 8);
    run(first, what);
    const uint64_t held = table.results().added;
    Emulator second(seed + 1);
    Change insert(table, HPS_INSERT_IF_ABSENT, fresh, 2);
    insert.modify.evict_proven = 0;
    insert.modify.forget = 0;
    insert.launch(second, mode, 8);
    run(second, what);
    const uint64_t evicted = table.results().evicted;
    check(mark == 0 ? evicted > 100 : evicted == 0, what + ": marks decide who goes");
    check(table.results().added - evicted >= held, what + ": only a new row takes a row's place");
    // Lookups mark the rows that they find.
    if (mark != 0) continue;
    std::vector<uint64_t> hot;
    for (const auto& [key, row] : table.contents()) hot.push_back(key);
    // Also if they read key by key.
    table.seem_written(seed % 2 == 0);
    for (uint64_t round = 0; round < 12; ++round) {
      Emulator third(seed + 2 + round);
      const Lookup lookup(table, nullptr, 16, hot);
      lookup.launch(third, mode);
      run(third, what);
    }
    table.seem_written(false);
    Emulator last(seed + 99);
    Change again(table, HPS_INSERT_IF_ABSENT, std::vector<uint64_t>(keys.begin() + 264, keys.end()), 2);
    again.modify.evict_proven = 0;
    again.modify.forget = 0;
    again.launch(last, mode, 8);
    run(last, what);
    const auto left = table.contents();
    const auto stays = [&](uint64_t key) { return left.count(key) == 1; };
    check(std::count_if(hot.begin(), hot.end(), stays) > 50, what + ": rows that were looked up stay");
  }
}

// A row in steady use is not evicted at once, whatever the chance: first it loses its marks, which lookups could give back.
void rows_in_steady_use_get_notice(int mode, uint64_t seed) {
  const std::string what = named("rows in steady use", mode, 16, seed);
  const std::vector<uint64_t> keys = some_keys(100, mode, seed);
  Table table(2, mode, 16);
  fill_table(table, std::vector<uint64_t>(keys.begin(), keys.begin() + 60), 3, seed, what);
  check(table.results().added == 32, what + ": the table is full");
  // 10 is what a race of a lookup with a writer may leave.
  if (seed % 2 == 0) table.marks()[0] ^= 1u << (HPS_MARK_BITS * 5);
  for (uint32_t number = 0; number < 4; ++number) {
    Emulator second(seed + number);
    Change insert(table, HPS_INSERT_IF_ABSENT, {keys[60 + number]}, 2);
    insert.modify.evict_proven = 1024;
    insert.modify.forget = 0;
    insert.launch(second, mode, 1);
    run(second, what);
    check(table.results().evicted == (number < 1 ? 0 : number), what + ": a mark goes first, then a row");
  }
}

// A lookup adds marks to the rows that it finds, and to no others.
void marks_are_those_of_rows_that_were_found(int mode, uint64_t seed, bool is_one_tag = false) {
  const std::string what = named("marks", mode, 16, seed) + (is_one_tag ? ", one tag" : "");
  Table table(1, mode, 16);
  fill_table(table, is_one_tag ? keys_of_one_tag(16, seed) : some_keys(16, mode, seed), 0, seed, what);
  std::vector<uint64_t> odd;
  for (const auto& [key, row] : table.contents()) {
    if ((row - row_of(table.get(), 0, 16)) / 16 % 2 == 1) odd.push_back(key);
  }
  check(odd.size() == 8, what + ": half of the slots");
  for (const uint32_t before : {0u, 0x44444444u, 0x88888888u}) {
    table.marks()[0] = before;
    for (uint64_t round = 0; round < 16; ++round) {
      Emulator emulator(seed + round);
      const Lookup lookup(table, nullptr, 16, odd);
      lookup.launch(emulator, mode);
      run(emulator, what);
    }
    check((table.marks()[0] & 0x33333333u) == 0, what + ": rows that nobody asked for have none");
    check((table.marks()[0] & before) == before && table.marks()[0] != before, what + ": others get more");
  }
}

// Of one key that many warps bring to a full cache, one adds it, and the others do not queue for its sets.
void copies_of_a_key_do_not_queue(int mode, uint64_t seed) {
  const std::string what = named("copies of a key", mode, 16, seed);
  const std::vector<uint64_t> keys = some_keys(200, mode, seed);
  Table table(4, mode, 16);
  fill_table(table, std::vector<uint64_t>(keys.begin(), keys.begin() + 100), 0, seed, what);
  const uint32_t before = table.times_locked();
  Emulator second(seed);
  Change insert(table, HPS_INSERT_IF_ABSENT, std::vector<uint64_t>(256, keys[150]), 2);
  insert.launch(second, mode, 64);
  run(second, what);
  check(table.contents().count(keys[150]) == 1, what + ": it is there");
  check(table.times_locked() - before <= 32, what + ": its sets are locked a few times");
}

// Rows that a full table has no room for are refused, and nothing is lost for them.
void what_has_no_room_is_refused(int mode, uint64_t seed) {
  const std::string what = named("no room", mode, 16, seed);
  Table table(4, mode, 16);
  const std::vector<uint64_t> keys = some_keys(80, mode, seed);
  Emulator emulator(seed);
  Change fill(table, HPS_UPSERT, keys, 1);
  // Two warps may stand in each other's way to the end; here they have to give up soon.
  fill.modify.displace = 20;
  fill.launch(emulator, mode, 8);
  run(emulator, what);
  check(table.results().added == 64 && table.results().refused == 16, what + ": as many as there are slots");
  check(table.contents().size() == 64, what + ": the table is full");
}

// The same keys come again and again from many warps, into a cache that is too small.
void a_cache_holds_a_key_once(int mode, uint64_t seed) {
  const std::string what = named("a cache", mode, 32, seed);
  Table table(3, mode, 32);
  const std::vector<uint64_t> all = some_keys(90, mode, seed);
  std::vector<uint64_t> keys;
  for (uint32_t i = 0; i < 300; ++i) keys.push_back(all[scramble(seed ^ i) % (i % 2 == 0 ? 5 : all.size())]);
  Emulator emulator(seed);
  const Change insert(table, HPS_INSERT_IF_ABSENT, keys, 1);
  insert.launch(emulator, mode, 16);
  run(emulator, what);
  const auto contents = table.contents();
  check(contents.size() == table.results().added - table.results().evicted, what + ": counted right");
  for (const auto& [key, row] : contents) check(version_of_row(key, row, 32) == 1, what + ": rows are right");
}

// When a writer begins: before, or anywhere among, what the lookups beside it do.
uint64_t writer_delay(uint64_t seed) { return scramble(seed) % 20000; }

// Lookups beside a writer that overwrites all rows and moves some: each row is whole, and of its key.
void readers_see_whole_rows(int mode, uint64_t seed, bool is_one_tag = false) {
  constexpr uint32_t kRowBytes = 64;
  const std::string what = named("readers", mode, kRowBytes, seed) + (is_one_tag ? ", one tag" : "");
  Table table(6, mode, kRowBytes);
  const std::vector<uint64_t> all = is_one_tag ? keys_of_one_tag(91, seed) : some_keys(91, mode, seed);
  const std::vector<uint64_t> keys(all.begin(), all.begin() + 60);
  fill_table(table, keys, 3, seed, what);
  Emulator emulator(seed + 1);
  const Change update(table, HPS_UPSERT, keys, 2);
  const Change more(table, HPS_UPSERT, all, 3);
  std::vector<std::unique_ptr<Lookup>> lookups;
  for (uint32_t i = 0; i < 6; ++i) {
    std::vector<uint64_t> asked;
    for (uint32_t j = 0; j < 40; ++j) asked.push_back(keys[scramble(seed ^ i << 8 ^ j) % keys.size()]);
    lookups.push_back(std::make_unique<Lookup>(table, nullptr, kRowBytes, asked));
    lookups.back()->launch(emulator, mode);
    // One launch after the other writes a table.
    if (i == 2) (seed % 2 == 0 ? update : more).launch(emulator, mode, 4, writer_delay(seed));
  }
  run(emulator, what);
  for (const auto& lookup : lookups) {
    for (size_t i = 0; i < lookup->keys.size(); ++i) {
      const int version = version_of_row(lookup->keys[i], lookup->row(i), kRowBytes);
      check(version == 1 || version == (seed % 2 == 0 ? 2 : 3), what + ": a row is torn, or another key's");
    }
    check(lookup->total(&HpsLookupCounters::first) == lookup->keys.size(), what + ": every key is counted once");
  }
}

// Rows in host memory behind a map. A writer moves them to other places, and the old places are used again as soon as the kernel
// that changes the map has ended.
class Mapped {
 public:
  static constexpr uint32_t kRowBytes = 64;

  Mapped(int mode, uint64_t seed, uint32_t count)
      : mode_(mode),
        seed_(seed),
        keys(some_keys(count, mode, seed)),
        cache(1, mode, kRowBytes),
        map((count + 9) / 10, mode, 8, true),
        places_(static_cast<char*>(std::calloc(keys.size() * 2, kApart)), &std::free) {
    for (size_t i = 0; i < keys.size(); ++i) write(i, keys[i], 1);
    Emulator emulator(seed);
    const Change fill = mapped(0);
    fill.launch(emulator, mode, 8);
    run(emulator, "a map is filled");
    for (size_t i = 0; i < keys.size(); ++i) write(keys.size() + i, keys[i], 2);
    change_ = std::make_unique<Change>(mapped(keys.size()));
  }

  // Makes the map show the second places.
  void move(Emulator& on, uint64_t delay) {
    left_ = 4 * HPS_MODIFY_THREADS;
    const auto kernel = [this] {
      mode_ == HPS_TAGS_EXACT ? modify_exact(change_->modify) : modify_hashed(change_->modify);
      // The host, after the kernel: the old places hold other rows.
      if (--left_ == 0) {
        for (size_t k = 0; k < keys.size(); ++k) write(k, ~keys[k], 7);
      }
    };
    on.launch(4, HPS_MODIFY_THREADS, kernel, delay);
  }

  std::unique_ptr<Lookup> lookup(uint32_t number, uint32_t count) const {
    std::vector<uint64_t> asked;
    for (uint32_t j = 0; j < count; ++j) asked.push_back(keys[scramble(seed_ ^ number << 8 ^ j) % keys.size()]);
    return std::make_unique<Lookup>(cache, &map, kRowBytes, asked);
  }

  void check_rows(const Lookup& lookup, const std::string& what) const {
    for (size_t i = 0; i < lookup.keys.size(); ++i) {
      const int version = version_of_row(lookup.keys[i], lookup.row(i), kRowBytes);
      check(version == 1 || version == 2, what + ": a row is torn, or another key's");
    }
    check(lookup.total(&HpsLookupCounters::second) == lookup.keys.size(), what + ": every key is counted once");
    check(left_ == 0, what + ": the writer has ended");
  }

 private:
  void write(size_t place, uint64_t key, uint32_t version) {
    const std::vector<uint32_t> row = row_for(key, version, kRowBytes);
    std::memcpy(places_.get() + place * kApart, row.data(), kRowBytes);
  }

  Change mapped(size_t first_place) {
    Change change(map, HPS_UPSERT, keys, 0);
    for (size_t i = 0; i < keys.size(); ++i) {
      const uint64_t to = reinterpret_cast<uint64_t>(places_.get()) + (first_place + i) * kApart;
      std::memcpy(change.rows.data() + 2 * i, &to, sizeof(to));
    }
    return change;
  }

  int mode_;
  uint64_t seed_;

 public:
  const std::vector<uint64_t> keys;
  Table cache, map;

 private:
  // So far apart that rows lie in many buckets. Only what is written takes memory.
  static constexpr size_t kApart = 1 << 20;
  std::unique_ptr<char, void (*)(void*)> places_;
  std::unique_ptr<Change> change_;
  uint32_t left_ = 0;
};

void readers_follow_the_map(int mode, uint64_t seed) {
  const std::string what = named("a map", mode, Mapped::kRowBytes, seed);
  Mapped mapped(mode, seed, 60);
  Emulator emulator(seed + 1);
  std::vector<std::unique_ptr<Lookup>> lookups;
  for (uint32_t i = 0; i < 8; ++i) {
    lookups.push_back(mapped.lookup(i, 32));
    lookups.back()->launch(emulator, mode);
  }
  mapped.move(emulator, writer_delay(seed));
  run(emulator, what);
  for (const auto& lookup : lookups) mapped.check_rows(*lookup, what);
}

// The same when rows are fetched after the lookup: the writer comes during the lookup, between, or during the fetch.
void fetched_rows_are_those_of_now(int mode, uint64_t seed) {
  const std::string what = named("fetched rows", mode, Mapped::kRowBytes, seed);
  Mapped mapped(mode, seed, 200);
  const std::unique_ptr<Lookup> lookup = mapped.lookup(0, 150);
  lookup->leave_rows();
  const uint64_t when = seed % 3;
  Emulator first(seed + 1);
  lookup->launch(first, mode);
  if (when == 0) mapped.move(first, writer_delay(seed));
  run(first, what);
  check(when == 0 || lookup->counts[0] == lookup->keys.size(), what + ": rows are left");
  const uint32_t num_left = lookup->counts[0];
  lookup->order(seed);
  check(lookup->counts[0] == 0 && lookup->counts[1] == num_left, what + ": as many are fetched as were left");
  const HpsFetchEntry* sorted = lookup->entries.data() + lookup->keys.size();
  const auto comes_before = [](const HpsFetchEntry& a, const HpsFetchEntry& b) {
    return fetch_bucket(a.address) < fetch_bucket(b.address);
  };
  check(std::is_sorted(sorted, sorted + num_left, comes_before), what + ": in the order of addresses");
  if (when == 1) {
    Emulator between(seed + 2);
    mapped.move(between, 0);
    run(between, what);
  }
  Emulator last(seed + 3);
  lookup->fetch(last, mode);
  if (when == 2) mapped.move(last, writer_delay(seed) / 8);
  run(last, what);
  mapped.check_rows(*lookup, what);
  const auto is_zero = [](uint32_t number) { return number == 0; };
  check(std::all_of(lookup->buckets.begin(), lookup->buckets.end(), is_zero), what + ": ready for the next lookup");
  // Which finds the space as this one has left it.
  std::fill(lookup->out.begin(), lookup->out.end(), uint4{});
  std::fill(lookup->counters.begin(), lookup->counters.end(), HpsLookupCounters{});
  Emulator again(seed + 4);
  lookup->launch(again, mode);
  run(again, what);
  lookup->order(seed + 1);
  Emulator end(seed + 5);
  lookup->fetch(end, mode);
  run(end, what);
  mapped.check_rows(*lookup, what + ", the next lookup");
}

// The number of E4M3 with these bits, by the definition of the format.
float e4m3(uint32_t q) {
  const int exponent = static_cast<int>(q >> 3 & 15u);
  const float mantissa = static_cast<float>(q & 7u) / 8;
  const float magnitude = exponent == 0 ? std::ldexp(mantissa, -6) : std::ldexp(1 + mantissa, exponent - 7);
  if ((q & 0x7fu) == 0x7fu) return std::numeric_limits<float>::quiet_NaN();
  return (q & 0x80u) != 0 ? -magnitude : magnitude;
}

// A lookup in a table of 8-bit floats, of keys that are there and of one that is not; and what it must yield.
struct Fp8Lookup {
  uint32_t dim, stored_bytes;
  Table table;
  std::vector<uint64_t> held;
  std::unique_ptr<Lookup> lookup;

  Fp8Lookup(int mode, uint32_t of_dim, uint64_t seed, bool is_one_tag = false)
      : dim(of_dim),
        stored_bytes((of_dim + 3) / 4 * 4 + 4),
        table(6, mode, stored_bytes),
        held(is_one_tag ? keys_of_one_tag(61, seed) : some_keys(60, mode, seed)) {
    const uint64_t absent = is_one_tag ? held.back() : mode == HPS_TAGS_EXACT ? 77 : 78;
    held.resize(60);
    Change fill(table, HPS_UPSERT, held, 1);
    // Any bits are numbers, and some scale that a float32 cannot be multiplied with exactly.
    const size_t words = stored_bytes / 4;
    for (size_t i = 0; i < held.size(); ++i) {
      const float scale = std::ldexp(1 + static_cast<float>(held[i] % 999) / 1000, static_cast<int>(held[i] % 60) - 30);
      fill.rows[i * words + words - 1] = __float_as_uint(scale);
    }
    Emulator emulator(seed);
    fill.launch(emulator, mode, 8);
    run(emulator, "rows of 8-bit floats");
    std::vector<uint64_t> asked(held.begin(), held.begin() + 43);
    asked[5] = asked[17] = asked[42] = absent;
    lookup = std::make_unique<Lookup>(table, nullptr, dim * 4, asked);
    lookup->lookup.row_bytes = stored_bytes;
    lookup->lookup.default_row |= kPlainRow;
    lookup->lookup.is_fp8 = 1;
  }

  void check_rows(const std::string& what) const {
    const auto contents = table.contents();
    for (size_t i = 0; i < lookup->keys.size(); ++i) {
      const auto found = contents.find(lookup->keys[i]);
      const float* row = reinterpret_cast<const float*>(lookup->out.data()) + i * dim;
      float scale = 0;
      if (found != contents.end()) std::memcpy(&scale, found->second + stored_bytes - 4, 4);
      for (uint32_t j = 0; j < dim; ++j) {
        if (found == contents.end()) {
          check(__float_as_uint(row[j]) == 0xabababab, what + ": the default row as it is");
          continue;
        }
        const float expected = e4m3(static_cast<uint8_t>(found->second[j])) * scale;
        const bool both_nan = std::isnan(expected) && std::isnan(row[j]);
        check(both_nan || __float_as_uint(expected) == __float_as_uint(row[j]), what + ": every number");
      }
    }
  }
};

// By size and lanes; then by mode.
constexpr void (*kFp8Kernels[][2])(HpsLookup) = {
    {lookup_exact_fp8x8_small, lookup_hashed_fp8x8_small},     {lookup_exact_fp8x8_medium, lookup_hashed_fp8x8_medium},
    {lookup_exact_fp8x8_large, lookup_hashed_fp8x8_large},     {lookup_exact_fp8x32_small, lookup_hashed_fp8x32_small},
    {lookup_exact_fp8x32_medium, lookup_hashed_fp8x32_medium}, {lookup_exact_fp8x32_large, lookup_hashed_fp8x32_large}};

// Rows of 8-bit floats are read as float32, whatever their length; default rows are copied.
void rows_of_8_bit_floats(int mode, uint64_t seed, bool is_one_tag = false) {
  for (const uint32_t dim : {1u, 2u, 5u, 32u, 33u, 130u}) {
    const std::string what = named("8-bit floats", mode, dim, seed) + (is_one_tag ? ", one tag" : "");
    const Fp8Lookup of(mode, dim, seed, is_one_tag);
    const HpsLookup& p = of.lookup->lookup;
    for (size_t number = 0; number < std::size(kFp8Kernels); ++number) {
      std::fill(of.lookup->out.begin(), of.lookup->out.end(), uint4{});
      Emulator emulator(seed + number);
      // Of more warps than there are keys for, some have nothing to do.
      emulator.launch(6, 32, [&] { kFp8Kernels[number][mode](p); });
      run(emulator, what);
      of.check_rows(what + ", kernel " + std::to_string(number));
    }
  }
}

// The same beside a writer: the numbers and the scale of a row are of one version.
void readers_see_whole_rows_of_8_bit_floats(int mode, uint64_t seed) {
  constexpr uint32_t kDim = 60;
  const std::string what = named("readers of 8-bit floats", mode, kDim, seed);
  Table table(6, mode, kDim + 4);
  const std::vector<uint64_t> keys = some_keys(60, mode, seed);
  // Every number is 1 or 2, and so is the scale: 1 or 4 when read, but 2 if versions are mixed.
  const auto change = [&](uint32_t q, float scale) {
    Change all(table, HPS_UPSERT, keys, 1);
    const size_t words = kDim / 4 + 1;
    for (size_t i = 0; i < all.rows.size(); ++i) all.rows[i] = i % words == words - 1 ? __float_as_uint(scale) : q;
    return all;
  };
  const Change first = change(0x38383838, 1), second = change(0x40404040, 2);
  Emulator before(seed);
  first.launch(before, mode, 8);
  run(before, what);
  Emulator emulator(seed + 1);
  std::vector<std::unique_ptr<Lookup>> lookups;
  for (uint32_t i = 0; i < 6; ++i) {
    std::vector<uint64_t> asked;
    for (uint32_t j = 0; j < 40; ++j) asked.push_back(keys[scramble(seed ^ i << 8 ^ j) % keys.size()]);
    lookups.push_back(std::make_unique<Lookup>(table, nullptr, kDim * 4, asked));
    HpsLookup& p = lookups.back()->lookup;
    p.row_bytes = kDim + 4;
    p.is_fp8 = 1;
    p.default_row |= kPlainRow;
    emulator.launch(5, 32, [&p, mode, i] { kFp8Kernels[i % std::size(kFp8Kernels)][mode](p); });
    if (i == 2) second.launch(emulator, mode, 4, writer_delay(seed));
  }
  run(emulator, what);
  for (const auto& lookup : lookups) {
    const float* numbers = reinterpret_cast<const float*>(lookup->out.data());
    for (size_t i = 0; i < lookup->keys.size() * kDim; ++i) {
      check(numbers[i] == numbers[i / kDim * kDim], what + ": a row is torn");
      check(numbers[i] == 1 || numbers[i] == 4, what + ": numbers and scale of one version");
    }
  }
}

// One launch serves keys of tables of different dims, modes and kinds of rows.
void several_tables_in_one_launch(uint64_t seed) {
  const std::string what = "several tables, seed " + std::to_string(seed);
  std::vector<std::unique_ptr<Table>> tables;
  std::vector<std::unique_ptr<Lookup>> lookups;
  std::vector<HpsLookup> list;
  std::vector<uint32_t> first_blocks;
  uint32_t num_blocks = 0;
  const auto add = [&](const HpsLookup& lookup) {
    list.push_back(lookup);
    first_blocks.push_back(num_blocks);
    constexpr uint32_t kKeys = HPS_KEYS_PER_WARP_MEDIUM * HPS_LOOKUP_MANY_THREADS / 32;
    num_blocks += (lookup.num_keys + kKeys - 1) / kKeys;
  };
  for (const uint32_t row_bytes : {64u, 12u, 160u, 4u}) {
    for (const int mode : {HPS_TAGS_EXACT, HPS_TAGS_HASHED}) {
      tables.push_back(std::make_unique<Table>(6, mode, row_bytes));
      const std::vector<uint64_t> keys = some_keys(90, mode, seed + row_bytes);
      Emulator emulator(seed);
      Change fill(*tables.back(), HPS_UPSERT, keys, row_bytes);
      fill.launch(emulator, mode, 8);
      run(emulator, what);
      lookups.push_back(std::make_unique<Lookup>(*tables.back(), nullptr, row_bytes, keys));
      add(lookups.back()->lookup);
    }
  }
  const Fp8Lookup fp8(HPS_TAGS_HASHED, 24, seed);
  add(fp8.lookup->lookup);
  const HpsLookups many{address(list), address(first_blocks), static_cast<uint32_t>(list.size()), 0};
  for (uint32_t block = 0; block < num_blocks; ++block) {
    Emulator emulator(seed + block);
    emulator.launch_block(block, num_blocks, HPS_LOOKUP_MANY_THREADS, [&] { lookup_many(many); });
    run(emulator, what);
  }
  for (const auto& lookup : lookups) {
    for (size_t i = 0; i < lookup->keys.size(); ++i) {
      const uint32_t row_bytes = lookup->lookup.row_bytes;
      check(version_of_row(lookup->keys[i], lookup->row(i), row_bytes) == static_cast<int>(row_bytes), what + ": rows");
    }
    check(lookup->total(&HpsLookupCounters::first) == lookup->keys.size(), what + ": every key is counted once");
  }
  fp8.check_rows(what);
}

// Keys that nothing holds are listed for the host, each once, before the word that tells how many there are; keys that only the
// second table holds are offered to the first.
void missed_keys_are_listed(int mode, uint64_t seed) {
  const std::string what = named("missed keys", mode, 64, seed);
  Table cache(2, mode, 64);
  Table behind(4, mode, 64);
  const std::vector<uint64_t> keys = some_keys(60, mode, seed);
  {
    Emulator emulator(seed);
    const Change fill(cache, HPS_UPSERT, {keys.begin(), keys.begin() + 20}, 1);
    fill.launch(emulator, mode, 4);
    run(emulator, what);
    Emulator another(seed);
    const Change more(behind, HPS_UPSERT, {keys.begin() + 20, keys.begin() + 40}, 1);
    more.launch(another, mode, 4);
    run(another, what);
  }
  std::vector<uint64_t> asked;
  for (uint32_t i = 0; i < 100; ++i) asked.push_back(keys[scramble(seed ^ i) % keys.size()]);
  Lookup lookup(cache, &behind, 64, asked);
  std::vector<uint32_t> counts(2), positions(asked.size(), ~0u);
  std::vector<uint64_t> listed(asked.size()), wanted(1 + HPS_WANTED_KEYS);
  uint64_t word = 0;
  HpsMissList& list = lookup.lookup.misses;
  list.count = address(counts);
  list.done = list.count + 4;
  list.positions = address(positions);
  list.keys = address(listed);
  list.word = reinterpret_cast<uint64_t>(&word);
  list.sequence = 77;
  lookup.lookup.wanted = address(wanted);
  // The host answers.
  lookup.lookup.default_row = 0;
  Emulator emulator(seed + 1);
  lookup.launch(emulator, mode);
  run(emulator, what);

  const auto part_of = [&](uint64_t key) { return (std::find(keys.begin(), keys.end(), key) - keys.begin()) / 20; };
  std::map<uint32_t, uint64_t> missed;
  std::vector<uint64_t> offered;
  for (uint32_t i = 0; i < asked.size(); ++i) {
    if (part_of(asked[i]) == 2) missed[i] = asked[i];
    if (part_of(asked[i]) == 1) offered.push_back(asked[i]);
    if (part_of(asked[i]) < 2) check(version_of_row(asked[i], lookup.row(i), 64) == 1, what + ": rows are right");
  }
  check(word == (uint64_t{77} << 32 | missed.size()), what + ": the word tells how many there are");
  std::map<uint32_t, uint64_t> found;
  for (size_t i = 0; i < missed.size(); ++i) found[positions[i]] = listed[i];
  check(found == missed, what + ": each is listed, with its position");
  check(counts[0] == 0 && counts[1] == 0, what + ": ready for the next lookup");
  check(wanted[0] == offered.size(), what + ": as many are offered");
  std::vector<uint64_t> ring(wanted.begin() + 1, wanted.begin() + 1 + static_cast<long>(offered.size()));
  std::sort(ring.begin(), ring.end());
  std::sort(offered.begin(), offered.end());
  check(ring == offered, what + ": keys of the second table are offered to the first");
  check(lookup.total(&HpsLookupCounters::missed) == 0, what + ": the host counts what it answers");
}

// What no table holds gets the default row, and is counted as missing.
void absent_keys_get_the_default_row(int mode, uint64_t seed) {
  const std::string what = named("absent keys", mode, 64, seed);
  Table table(2, mode, 64);
  Table behind(4, mode, 64);
  Emulator emulator(seed);
  std::vector<uint64_t> keys = some_keys(30, mode, seed);
  const Change fill(behind, HPS_UPSERT, {keys.begin(), keys.begin() + 20}, 1);
  fill.launch(emulator, mode, 8);
  run(emulator, what);
  keys.push_back(~uint64_t{0});
  Emulator second(seed + 1);
  const Lookup lookup(table, &behind, 64, keys);
  lookup.launch(second, mode);
  run(second, what);
  for (size_t i = 0; i < keys.size(); ++i) {
    check(i < 20 ? version_of_row(keys[i], lookup.row(i), 64) == 1 : lookup.is_default(i), what + ": rows are right");
  }
  check(lookup.total(&HpsLookupCounters::second) == 20, what + ": found");
  check(lookup.total(&HpsLookupCounters::missed) == 11, what + ": missing");
}

// Keys that no tag tells apart get their own rows, from either table, or the default row; rows of the second are copied at once or
// left to be fetched.
void keys_of_one_tag_are_told_apart(uint64_t seed) {
  constexpr uint32_t kRowBytes = 64;
  constexpr void (*kKernels[])(HpsLookup) = {lookup_hashed_16x4_small, lookup_hashed_16x4_medium, lookup_hashed_16x4_large,
                                             lookup_hashed_16x4_passing};
  for (uint32_t number = 0; number < 2 * std::size(kKernels); ++number) {
    const bool leaves = number % 2 == 1;
    const std::string what = named("one tag", HPS_TAGS_HASHED, kRowBytes, seed) + ", kernel " + std::to_string(number / 2);
    Table table(2, HPS_TAGS_HASHED, kRowBytes);
    Table behind(3, HPS_TAGS_HASHED, kRowBytes);
    const std::vector<uint64_t> keys = keys_of_one_tag(40, seed);
    fill_table(table, {keys.begin(), keys.begin() + 15}, 3, seed, what);
    fill_table(behind, {keys.begin() + 10, keys.begin() + 30}, 3, seed, what);
    // Not a multiple of what a warp takes.
    std::vector<uint64_t> asked = keys;
    asked.push_back(keys[3]);
    Lookup lookup(table, &behind, kRowBytes, asked);
    if (leaves) lookup.leave_rows();
    Emulator first(seed);
    // Of more warps than there are keys for, some have nothing to do.
    first.launch(6, 32, [&] { kKernels[number / 2](lookup.lookup); });
    run(first, what);
    if (leaves) {
      check(lookup.counts[0] == 15, what + ": rows of the second table are left");
      lookup.order(seed);
      Emulator second(seed + 1);
      lookup.fetch(second, HPS_TAGS_HASHED);
      run(second, what);
    }
    for (size_t i = 0; i < asked.size(); ++i) {
      const bool is_absent = i >= 30 && i < 40;
      check(is_absent ? lookup.is_default(i) : version_of_row(asked[i], lookup.row(i), kRowBytes) == 1,
            what + ": rows are right");
    }
    check(lookup.total(&HpsLookupCounters::first) == 16, what + ": found in the first table");
    check(lookup.total(&HpsLookupCounters::second) == 15, what + ": found in the second");
    check(lookup.total(&HpsLookupCounters::missed) == 10, what + ": missing");
  }
}

// A batch's distinct keys are counted, a table's keys are listed, rows are put where they belong.
void helpers_count_list_and_scatter(int mode, uint64_t seed) {
  const std::string what = named("helpers", mode, 12, seed);
  const std::vector<uint64_t> keys = some_keys(90, mode, seed);
  std::vector<uint64_t> asked;
  for (uint32_t i = 0; i < 300; ++i) asked.push_back(keys[scramble(seed ^ i) % keys.size()]);
  std::vector<uint32_t> places(1024), number(1);
  HpsUnique count{};
  count.keys = address(asked);
  count.places = address(places);
  count.count = address(number);
  count.num_keys = static_cast<uint32_t>(asked.size());
  count.key_bytes = 8;
  count.place_mask = 1023;
  Emulator first(seed);
  first.launch(3, HPS_MODIFY_THREADS, [&] { unique(count); });
  run(first, what);
  check(number[0] == std::unordered_set<uint64_t>(asked.begin(), asked.end()).size(), what + ": distinct keys");

  Table table(8, mode, 12);
  Emulator second(seed);
  const Change fill(table, HPS_UPSERT, keys, 1);
  fill.launch(second, mode, 8);
  run(second, what);
  std::vector<uint64_t> listed(128), num_listed(1);
  HpsDump list{table.get(), address(listed), address(num_listed), listed.size(), 0, 8};
  Emulator third(seed);
  third.launch(1, HPS_MODIFY_THREADS, [&] { mode == HPS_TAGS_EXACT ? dump_exact(list) : dump_hashed(list); });
  run(third, what);
  listed.resize(num_listed[0]);
  std::sort(listed.begin(), listed.end());
  std::vector<uint64_t> expected = keys;
  std::sort(expected.begin(), expected.end());
  check(listed == expected, what + ": every key is listed once");

  std::vector<uint32_t> positions(40), out(64 * 3, 7);
  for (uint32_t i = 0; i < positions.size(); ++i) positions[i] = (i * 37 + static_cast<uint32_t>(seed)) % 64;
  const HpsScatter put{fill.modify.rows, address(positions), address(out), 40, 12};
  Emulator fourth(seed);
  fourth.launch(2, HPS_MODIFY_THREADS, [&] { scatter(put); });
  run(fourth, what);
  for (uint32_t i = 0; i < positions.size(); ++i) {
    check(version_of_row(keys[i], reinterpret_cast<const char*>(&out[positions[i] * 3]), 12) == 1, what + ": rows");
  }
  check(std::count(out.begin(), out.end(), 7u) == 24 * 3, what + ": other rows stay");
}

}  // namespace

// kernels_test [number of seeds]
int main(int argc, char** argv) {
  const uint64_t num_seeds = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 3;
  for (uint64_t seed = 1; seed <= num_seeds; ++seed) {
    for (const int mode : {HPS_TAGS_EXACT, HPS_TAGS_HASHED}) {
      for (const uint32_t row_bytes : {8u, 12u, 64u}) every_key_finds_room(mode, row_bytes, seed, Order::kRandom);
      every_key_finds_room(mode, 64, seed, Order::kInStep);
      what_has_no_room_is_refused(mode, seed);
      rows_in_the_way_move_first(mode, seed);
      rows_in_use_stay(mode, seed);
      rows_in_steady_use_get_notice(mode, seed);
      marks_are_those_of_rows_that_were_found(mode, seed);
      copies_of_a_key_do_not_queue(mode, seed);
      a_cache_holds_a_key_once(mode, seed);
      readers_see_whole_rows(mode, seed);
      readers_follow_the_map(mode, seed);
      fetched_rows_are_those_of_now(mode, seed);
      absent_keys_get_the_default_row(mode, seed);
      missed_keys_are_listed(mode, seed);
      helpers_count_list_and_scatter(mode, seed);
      rows_of_8_bit_floats(mode, seed);
      readers_see_whole_rows_of_8_bit_floats(mode, seed);
    }
    several_tables_in_one_launch(seed);
    keys_of_one_tag_are_told_apart(seed);
    marks_are_those_of_rows_that_were_found(HPS_TAGS_HASHED, seed, true);
    rows_of_8_bit_floats(HPS_TAGS_HASHED, seed, true);
    // Rows that are looked for again by their whole key take little of a lookup's time: a writer must be lucky to meet one.
    for (uint64_t i = 0; i < 16; ++i) readers_see_whole_rows(HPS_TAGS_HASHED, 16 * seed + i, true);
  }
  check(refused_nearly_full[1] * 2 < refused_nearly_full[0], "far moves make room for most of what is refused without");
  if (failures == 0) std::printf("%llu seeds: as expected\n", static_cast<unsigned long long>(num_seeds));
  return failures == 0 ? 0 : 1;
}
