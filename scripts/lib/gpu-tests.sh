#!/usr/bin/env bash
# Builds the crates' test programs that need a GPU and puts them into build/gpu-tests, where scripts/test-gpu finds them on
# whatever machine the tree is then.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"
hps_env

programs="$(cargo test --release --locked --package hps-gpu --lib --no-run --message-format json |
  "$PYTHON" -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        print(message["executable"])')"
[ -n "$programs" ] || fail "cargo named no test program"
rm -rf build/gpu-tests
mkdir -p build/gpu-tests
for program in $programs; do
  strip -o "build/gpu-tests/hps_gpu" "$program"
done
