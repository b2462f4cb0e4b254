// What host and device share: plain structs and constants. bindgen makes the Rust twins of this file (crates/gpu/src/abi.rs),
// and cuda/abi_check.cu reports the device's view of every size and offset, which a test compares.
#ifndef HPS_ABI_H
#define HPS_ABI_H

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

// Slots of one set. A set's tags fill one 32-byte sector, the unit in which GPU memory is read.
#define HPS_WAYS 16
// Bits of a set's marks for each slot; see marks.cuh.
#define HPS_MARK_BITS 2
// Keys that one warp takes at a time: many for throughput, few for latency.
#define HPS_KEYS_PER_WARP_LARGE 32
#define HPS_KEYS_PER_WARP_MEDIUM 16
#define HPS_KEYS_PER_WARP_SMALL 8
// Threads of a block of the lookup kernels, at most.
#define HPS_LOOKUP_THREADS 128
#define HPS_MODIFY_THREADS 128
// Copies of each lookup counter, so that warps do not queue for one address; the sum counts.
#define HPS_COUNTER_COPIES 64

// How a tag tells keys apart.
enum HpsTagMode {
  // The tag and the set give the whole key back: keys below a bound, a few billion for large tables. 32 bytes per probe.
  HPS_TAGS_EXACT = 0,
  // The tag is 16 bits of the key's hash; the whole key is compared beside it. Any 64-bit keys. 64 bytes per probe.
  HPS_TAGS_HASHED = 1,
};

// Rows in sets of 16 slots: a cache in GPU memory, a whole table in GPU or in pinned host memory, or a map that tells where in
// pinned host memory rows lie.
// Plain addresses: the owner is crates/gpu/src/set_table.rs. Layout and rules of access: set_table.cuh.
typedef struct HpsSetTable {
  uint64_t tags;        // (num_sets, 16) uint16
  uint64_t keys;        // (num_sets, 16) uint64; 0 with HPS_TAGS_EXACT
  uint64_t marks;       // (num_sets) uint32
  uint64_t versions;    // (num_sets) uint32, odd while a writer is at work on the set
  uint64_t writers;     // one HpsWriters
  uint64_t rows;        // (num_sets * 16, row_bytes): device address of GPU memory or of mapped host memory
  uint64_t key_bound;   // with HPS_TAGS_EXACT, keys from here on cannot be held; else 0
  uint32_t num_sets;    // 0: there is no such table
  uint32_t reciprocal;  // floor((2^32 - 1) / num_sets)
  uint32_t key_mask;    // 2^k - 1, with HPS_TAGS_EXACT the keys that are permuted; else 0
  uint32_t key_shift;   // (k + 1) / 2
  uint32_t is_map;      // 1: `rows` are (num_sets * 16) uint64, the addresses where the rows lie; 0: the rows themselves
  uint32_t keeps_tags;  // 1: tags should stay in the second-level cache
} HpsSetTable;

// How many blocks of writing kernels have begun and ended their work on a table: equal while nobody writes.
typedef struct HpsWriters {
  uint32_t begun;
  uint32_t ended;
} HpsWriters;

// Keys that lookups found in the first table (the cache), in the second (rows in host memory), or nowhere.
// One line of memory, so that copies do not share any.
typedef struct HpsLookupCounters {
  uint64_t first;
  uint64_t second;
  uint64_t missed;
  uint64_t unused[13];
} HpsLookupCounters;

// Where a lookup leaves keys that it could not answer, for the host to read: mapped pinned memory where nothing else is said.
typedef struct HpsMissList {
  uint64_t count;       // uint32 in device memory; zero before the launch and after it
  uint64_t done;        // uint32 in device memory: warps that have finished; zero before the launch and after it
  uint64_t positions;   // (num_keys) uint32
  uint64_t keys;        // (num_keys) uint64
  uint64_t unique;      // uint32 in device memory: a number for the host; 0: none
  uint64_t unique_out;  // uint64: where it goes
  uint64_t word;        // uint64: (sequence << 32 | number of misses), written last
  uint32_t sequence;
  uint32_t unused;
} HpsMissList;

// A row in host memory that a lookup has found and leaves to be fetched.
typedef struct HpsFetchEntry {
  uint64_t address;
  uint32_t position;  // of its key
  uint32_t begun;     // of the second table's writers, before the address was read
} HpsFetchEntry;

// Where a lookup leaves such rows; fetch.cu reads them in the order of their addresses. All in device memory.
#define HPS_FETCH_BUCKETS 4096
// Rows that are on their way at a time. More lie too far from each other; fewer do not fill the bus. Measured on an H100: a lookup
// of 262,144 keys that misses 23,000 of 20 million rows of 512 bytes takes 600 us with 512 or 1024, 630 with 2048, 720 with 4096.
#define HPS_FETCH_ROWS 1024
#define HPS_FETCH_THREADS 32
#define HPS_FETCH_PLACE_THREADS 128
#define HPS_FETCH_ORDER_THREADS 1024
typedef struct HpsFetchList {
  uint64_t entries;  // (num_keys) HpsFetchEntry; 0: the lookup copies such rows itself
  uint64_t sorted;   // (num_keys) HpsFetchEntry
  uint64_t buckets;  // (HPS_FETCH_BUCKETS) uint32: rows of each piece of memory; zero before the lookup and after the fetch
  uint64_t counts;   // uint32[3]: entries listed, zero before the lookup; entries to be fetched; entries taken by warps
} HpsFetchList;

// One launch of a lookup kernel, and of those that fetch what it has left.
typedef struct HpsLookup {
  HpsSetTable first;
  HpsSetTable second;  // num_sets 0: none
  uint64_t keys;       // (num_keys) int64 or int32, device
  uint64_t out;        // (num_keys, out_row_bytes), device
  // (out_row_bytes) device: for keys that nobody holds; 0: the host answers them, and counts them. With is_fp8, with the bit
  // kPlainRow of fp8_rows.cuh
  uint64_t default_row;
  uint64_t counters;   // (HPS_COUNTER_COPIES) HpsLookupCounters, device; 0: nobody counts
  HpsMissList misses;  // word 0: not wanted
  HpsFetchList fetch;  // entries 0: none; else there is a default row
  uint64_t wanted;     // HpsWantedKeys, device: keys that the first table should take in; 0: nobody asks
  uint32_t num_keys;
  uint32_t key_bytes;  // 4 or 8
  uint32_t row_bytes;
  uint32_t out_row_bytes;  // as row_bytes, but for rows of 8-bit floats
  uint32_t is_fp8;         // 1: rows are of 8-bit floats (fp8_rows.cuh); the entry point must be for them
  uint32_t unused;
} HpsLookup;

// Lookups in several tables by one launch: at least one, of any dims, keys and modes, without rows that are left to be fetched.
#define HPS_LOOKUP_MANY_THREADS 64
typedef struct HpsLookups {
  uint64_t lookups;       // (num_lookups) HpsLookup, device
  uint64_t first_blocks;  // (num_lookups) uint32, device: which block of the launch is the first of each; ascending, from 0
  uint32_t num_lookups;
  uint32_t unused;
} HpsLookups;

// A ring of keys that lookups found in the second table alone. Lookups overwrite what nobody took in time.
#define HPS_WANTED_KEYS (1u << 18)
typedef struct HpsWantedKeys {
  uint64_t count;  // keys ever written
  uint64_t keys[HPS_WANTED_KEYS];
} HpsWantedKeys;

// The device's view of this file: abi_check fills it, a test compares it with the host's.
#define HPS_NUM_ABI_FACTS 64

// What a modification does with each key.
enum HpsModifyMode {
  // Adds the key unless it is there; may evict. For rows read below.
  HPS_INSERT_IF_ABSENT = 0,
  // Overwrites the row of a key that is there.
  HPS_UPDATE_IF_PRESENT = 1,
  // Adds or overwrites; never evicts: a key without room is counted in `refused`.
  HPS_UPSERT = 2,
  // Removes the key.
  HPS_ERASE = 3,
};

// One launch of the modifying kernel. Keys may repeat only if their rows are equal.
typedef struct HpsModify {
  HpsSetTable table;
  HpsSetTable source;  // rows are taken from here if `rows` is 0, keys that it lacks are left out
  uint64_t keys;       // (num_keys) uint64, device or mapped host
  uint64_t rows;       // (num_keys, row_bytes), device or mapped host
  uint64_t indices;    // (num_keys) uint32, device or mapped host: which keys and rows are meant; 0: all from the start
  uint64_t results;    // HpsModifyResults, device
  uint32_t num_keys;
  uint32_t row_bytes;
  uint32_t mode;          // HpsModifyMode
  uint32_t mark;          // marks of a row that is added: 0, 1 or 3
  uint32_t evict_proven;  // chance, in 1/1024, that a row which was used is evicted for a new one
  uint32_t forget;        // chance, in 1/1024, that one row of a full set loses a mark
  uint32_t displace;      // attempts to make room by moving rows to their other sets, if others are in the way; 0: none
  uint32_t displace_far;  // 1: a row that is in the way of such a move is moved first
  uint32_t seed;
  uint32_t unused;
} HpsModify;

typedef struct HpsModifyResults {
  uint64_t added;
  uint64_t overwritten;
  uint64_t erased;
  uint64_t evicted;
  uint64_t refused;  // no room (HPS_UPSERT), or not a key that this table can hold
} HpsModifyResults;

// Counts the distinct keys of a batch.
typedef struct HpsUnique {
  uint64_t keys;    // (num_keys) int64 or int32, device
  uint64_t places;  // (place_mask + 1) uint32, device, zero before the launch: an open-addressing hash set of positions + 1
  uint64_t count;   // uint32, device: the number is added
  uint32_t num_keys;
  uint32_t key_bytes;   // 4 or 8
  uint32_t place_mask;  // a power of two minus one, at least twice num_keys
  uint32_t unused;
} HpsUnique;

// Staged rows to the caller's rows.
typedef struct HpsScatter {
  uint64_t rows;       // (num_rows, row_bytes), mapped host or device
  uint64_t positions;  // (num_rows) uint32, mapped host or device
  uint64_t out;        // (any, row_bytes), device
  uint32_t num_rows;
  uint32_t row_bytes;
} HpsScatter;

// Lists the keys of a table.
typedef struct HpsDump {
  HpsSetTable table;
  uint64_t keys;   // (capacity) uint64, device
  uint64_t count;  // uint64, device, zero before the launch
  uint64_t capacity;
  uint32_t first_set;
  uint32_t num_sets;
} HpsDump;

#endif
