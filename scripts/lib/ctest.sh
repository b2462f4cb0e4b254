#!/usr/bin/env bash
# Builds the library with its C++ tests into build/cmake and runs them.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
hps_env
cmake -S "$ROOT" -B "$ROOT/build/cmake" -G Ninja -DHPS_PYTHON="$PYTHON" -DHPS_BUILD_TESTS=ON
cmake --build "$ROOT/build/cmake"
ctest --test-dir "$ROOT/build/cmake" --output-on-failure
