/*
 * The C interface of hps: open, close and inspect embedding stores, change their rows, and look rows up without torch.
 *
 * Models do not need it. A model calls the operator `hps::lookup`, which opens its store on first use; this interface is
 * for the program around the model, and it acts on the same stores: one store per configuration file and process.
 *
 * Names        A store is named by the path of its configuration file (`ps.json`), found as the operators find it: the path
 *              itself if it exists, else a file of that name in the folder $HPS_CONFIG_DIR, else the file $HPS_CONFIG_FILE.
 *              A relative path starts from the working directory of the call. The environment is looked at when a name is
 *              first used; while its store is open, the name keeps its meaning.
 *              Different names of one file are one store. Text is UTF-8 and ends with a zero byte.
 * Errors       A function that can fail returns HPS_OK or one of the HPS_ERROR codes, and then hps_last_error() has the
 *              text. An error leaves the process and all other stores as they were.
 * Threads      Every function may be called from any thread at any time. hps_open and the first lookup of a store do the
 *              opening once, however many threads arrive; the others wait.
 * Processes    A store does not survive fork(): in the child, lookups in it fail with HPS_ERROR_CLOSED.
 * Exit         Nothing has to be closed before the process ends.
 * Ownership    Arguments are only read, and only during the call. A `const char*` result belongs to the library. A string
 *              handed out through a `char**` belongs to the caller, who gives it back with hps_free_string.
 */
#ifndef HPS_H
#define HPS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What went wrong, by who must act. Values are never reused; later versions may add some. */
enum {
  HPS_OK = 0,
  /* An argument is wrong: a null pointer, no such model or table, another vector size or key width. */
  HPS_ERROR_INVALID_ARGUMENT = 1,
  /* The configuration file or a file it names is missing or wrong. */
  HPS_ERROR_CONFIG = 2,
  /* The store is not open. */
  HPS_ERROR_NOT_FOUND = 3,
  /* A database or file could not be read or written. */
  HPS_ERROR_STORAGE = 4,
  HPS_ERROR_OUT_OF_MEMORY = 5,
  /* Stored bytes are not what they must be. */
  HPS_ERROR_CORRUPT = 6,
  /* The store was closed, or belongs to the process this one was forked from. */
  HPS_ERROR_CLOSED = 7,
  /* The configuration asks for something this build does not have. */
  HPS_ERROR_UNSUPPORTED = 8,
  /* A defect of hps itself. */
  HPS_ERROR_INTERNAL = 9,
  /* A GPU or its driver failed; the text says whether the process must be started again. */
  HPS_ERROR_DEVICE = 10
};

/* The version of this library, for instance "0.1.0". Never null. */
const char* hps_version(void);

/*
 * The text of the last error of the calling thread, "" if its last call succeeded. Never null.
 * Valid until the calling thread's next call of a function of this file.
 */
const char* hps_last_error(void);

/*
 * Opens the store and loads its tables. Returns when lookups can be served, which may take minutes for large tables.
 * Does nothing if the store is open. A store that failed to open can be opened again once the cause is removed.
 */
int hps_open(const char* ps_config_file);

/*
 * Closes the store: waits for lookups that are running in it, then frees its memory and releases its databases.
 * HPS_ERROR_NOT_FOUND if it is not open, HPS_ERROR_CONFIG if no configuration has that name. The next lookup that names it
 * opens it again.
 */
int hps_close(const char* ps_config_file);

/* Closes every open store, as hps_close does. Does not wait for stores that other threads are opening. */
int hps_close_all(void);

/*
 * Writes to *json what the open store holds and what its lookups found since it was opened: one JSON object, per model and
 * table the number of keys asked for, of hits in each tier, of keys missing everywhere, and rows and bytes held per tier.
 * HPS_ERROR_NOT_FOUND if the store is not open. On success the caller frees *json; on error it is not written.
 */
int hps_stats(const char* ps_config_file, char** json);

/*
 * Reads the rows that GPUs hold again from the tiers below and overwrites them there; tables that a GPU holds whole get new keys,
 * too. For changes of a database that did not come through this process. Lookups go on meanwhile and see each row old or new. Returns when it is done; *keys, unless null, is the
 * number of keys looked at (0 without GPUs). HPS_ERROR_NOT_FOUND if the store is not open.
 */
int hps_refresh(const char* ps_config_file, uint64_t* keys);

/*
 * Writes to *path the canonical path of the configuration file that this name stands for, without opening anything.
 * HPS_ERROR_CONFIG if there is none; the text lists what was tried. On success the caller frees *path.
 */
int hps_resolve(const char* ps_config_file, char** path);

/*
 * Writes the row of keys[i] to rows[i * emb_vec_size ...], for all i below num_keys. A key that no tier has gets the
 * table's default row. Opens the store if it is not open. Keys may repeat and have any value.
 *
 *   table_id      position of the table in the model's configuration, from 0
 *   emb_vec_size  float32 values per row; must equal the configured size
 *   keys          num_keys values of key_bits each, in host memory; may be null if num_keys is 0
 *   key_bits      64 (int64_t) if the model's `supportlonglong` is true, else 32 (read as uint32_t)
 *   rows          num_keys * emb_vec_size floats, in host memory, written by this call; may be null if num_keys is 0.
 *                 Must not overlap keys
 *
 * After an error the contents of rows are unspecified.
 */
int hps_lookup(const char* ps_config_file, const char* model_name, int64_t table_id, int64_t emb_vec_size, const void* keys,
               int key_bits, size_t num_keys, float* rows);

/*
 * Adds the row rows[i * emb_vec_size ...] of keys[i] to a table, or overwrites it, for all i below num_keys: first in the lowest
 * database, which holds the table, then wherever the row is cached, GPUs included. Of a repeated key the last row wins. Tables
 * that share their storage (fuse_embedding_table) all see it. Opens the store if it is not open.
 *
 * Lookups go on meanwhile; each row is seen old or new, whole. Lookups that begin after the call has returned see the new rows;
 * so do CUDA graphs that are replayed after, unless a warning has said that a GPU has no room for new keys. Calls of more than
 * 65,536 keys are written in parts, between which other calls may write. Arguments as for hps_lookup.
 *
 * HPS_ERROR_UNSUPPORTED if the database is read-only, or another store of this process caches the same table. After an error
 * some of the keys may have their new row; every tier that a lookup asks shows the same.
 */
int hps_update(const char* ps_config_file, const char* model_name, int64_t table_id, int64_t emb_vec_size, const void* keys,
               int key_bits, size_t num_keys, const float* rows);

/* Removes keys from a table, in the same way. Lookups then get the default row for them. Keys that are absent are ignored. */
int hps_erase(const char* ps_config_file, const char* model_name, int64_t table_id, const void* keys, int key_bits,
              size_t num_keys);

/* Frees a string that was handed out through a `char**`. Null is allowed. */
void hps_free_string(char* string);

/*
 * The path of the copy of libhps_torch.so whose operators serve this process. It is this library's own path unless another
 * copy was loaded before it (for instance one named in LD_PRELOAD and one of a Python package): the later copy then
 * registers nothing, and its C interface would see other stores than the models use. Management code therefore calls the
 * functions of the file named here. Null if no copy could register the operators; the reason went to standard error.
 */
const char* hps_ops_library(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* HPS_H */
