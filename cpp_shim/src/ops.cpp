// The operators of libhps_torch.so: every schema, then its implementation. Schemas are a promise: add, never change.
#include <cstdio>
#include <exception>
#include <string>

#include "hps.h"
#include "lookup.h"
#include "other_copy.h"
#include "torch_compat.h"

namespace hps {
namespace {

using torch_compat::OpLibrary;

void register_hps() {
  OpLibrary ops("hps");
  ops.def("lookup(Tensor keys, str ps_config_file, str model_name, int table_id, int emb_vec_size) -> Tensor");
  ops.impl("lookup", TORCH_BOX(&lookup));
  ops.keep();
}

// The name that models scripted with NVIDIA's hps_torch plugin call, with positional arguments.
void register_hps_torch() {
  OpLibrary ops("hps_torch");
  ops.def("hps_embedding_lookup(Tensor keys, str ps_config_file, str model_name, int table_id, int emb_vec_size) -> Tensor");
  ops.impl("hps_embedding_lookup", TORCH_BOX(&lookup));
  ops.keep();
}

// Registers one namespace. This runs while the library is being loaded, where an exception would end the process: a failure
// is said on standard error, and the caller of a missing operator hears of it from torch.
bool try_register(const char* ns, void (*register_namespace)()) {
  try {
    register_namespace();
    return true;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s, so the operators %s::* of %s are not available. Does another library have them?\n",
                 error.what(), ns, own_path().c_str());
    return false;
  }
}

// Returns the path of the library that serves the operators, or null. It is never freed: it is needed until the process ends.
const char* register_all() {
  try {
    if (const auto other = find_other_copy()) {
      if (other->version != hps_version()) {
        std::fprintf(stderr, "hps: %s (version %s) stays unused: %s (version %s) already serves the operators\n",
                     own_path().c_str(), hps_version(), other->path.c_str(), other->version.c_str());
      }
      return (new std::string(other->path))->c_str();
    }
    const bool registered = try_register("hps", &register_hps);
    try_register("hps_torch", &register_hps_torch);
    return registered ? (new std::string(own_path()))->c_str() : nullptr;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "hps: the operators are not available: %s\n", error.what());
    return nullptr;
  }
}

// Null until the operators are registered: a copy loaded meanwhile must not count on them. Has no destructor, so that nothing
// happens at exit while other threads may still be looking rows up.
const char* ops_library = nullptr;

[[gnu::constructor]] void on_load() { ops_library = register_all(); }

}  // namespace
}  // namespace hps

extern "C" [[gnu::visibility("default")]] const char* hps_ops_library(void) { return hps::ops_library; }
