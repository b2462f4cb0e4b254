#include "hps.h"

/* Uses every function with its documented type, so that a change of signature does not pass unnoticed. */
struct {
  const char* (*version)(void);
  const char* (*last_error)(void);
  int (*open)(const char*);
  int (*close)(const char*);
  int (*close_all)(void);
  int (*stats)(const char*, char**);
  int (*resolve)(const char*, char**);
  int (*lookup)(const char*, const char*, int64_t, int64_t, const void*, int, size_t, float*);
  void (*free_string)(char*);
  const char* (*ops_library)(void);
} const all_functions = {hps_version, hps_last_error, hps_open,   hps_close,       hps_close_all,
                         hps_stats,   hps_resolve,    hps_lookup, hps_free_string, hps_ops_library};
