#pragma once

#include <optional>
#include <string>

namespace hps {

// Another file in this process that holds the operators.
struct OtherCopy {
  std::string path;
  std::string version;
};

// The copy of this library that registered the operators before this one was loaded, if there is one.
std::optional<OtherCopy> find_other_copy();

// The file this code was loaded from.
std::string own_path();

}  // namespace hps
