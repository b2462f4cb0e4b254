#!/usr/bin/env bash
# Installs the library into build/install, as a C++ user would, and builds the LibTorch example against it: build/serve/serve.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hps_env
cmake -S "$ROOT" -B "$ROOT/build/cmake" -G Ninja -DHPS_PYTHON="$PYTHON"
cmake --build "$ROOT/build/cmake"
cmake --install "$ROOT/build/cmake" --prefix "$ROOT/build/install"
cmake -S "$ROOT/cpp_shim/examples/serve" -B "$ROOT/build/serve" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$ROOT/build/install" -DHPS_PYTHON="$PYTHON"
cmake --build "$ROOT/build/serve"
