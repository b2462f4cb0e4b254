// How a copy of the library finds one that was loaded before it.
//
// The realistic case is LD_PRELOAD naming one file and a Python package loading another. Torch accepts an operator once; a
// second registration is refused, and with some versions of torch the refusal ends the process. The copies cannot see each
// other through the linker, because Python loads libraries with local visibility. So the later one walks the list of loaded
// objects and asks each for the function hps_ops_library.
#include "other_copy.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "hps.h"

namespace hps {
namespace {

using Handle = std::unique_ptr<void, int (*)(void*)>;

int collect_path(dl_phdr_info* object, size_t, void* paths) {
  // The program itself has an empty name; dlopen("") opens it.
  static_cast<std::vector<std::string>*>(paths)->emplace_back(object->dlpi_name ? object->dlpi_name : "");
  return 0;
}

using TextFunction = const char* (*)();

TextFunction find_function(void* handle, const char* name) { return reinterpret_cast<TextFunction>(dlsym(handle, name)); }

// The function hps_ops_library of another file, reached through an object that is already loaded.
TextFunction foreign_ops_library(void* handle) {
  const TextFunction function = find_function(handle, "hps_ops_library");
  return function == &hps_ops_library ? nullptr : function;
}

}  // namespace

std::optional<OtherCopy> find_other_copy() {
  std::vector<std::string> paths;
  dl_iterate_phdr(&collect_path, &paths);
  for (const std::string& path : paths) {
    // Takes a reference on an object that is there; never loads one.
    const Handle object(dlopen(path.empty() ? nullptr : path.c_str(), RTLD_LAZY | RTLD_NOLOAD), &dlclose);
    const TextFunction ops_library = object ? foreign_ops_library(object.get()) : nullptr;
    const char* other = ops_library ? ops_library() : nullptr;
    if (other != nullptr) {
      const TextFunction version = find_function(object.get(), "hps_version");
      return OtherCopy{other, version ? version() : "unknown"};
    }
  }
  return std::nullopt;
}

std::string own_path() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&find_other_copy), &info) == 0 || info.dli_fname == nullptr) {
    return "libhps_torch.so";
  }
  // The name may be relative to the working directory, which can change.
  const std::unique_ptr<char, void (*)(void*)> canonical(realpath(info.dli_fname, nullptr), &free);
  return canonical ? canonical.get() : info.dli_fname;
}

}  // namespace hps
