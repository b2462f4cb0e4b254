# shellcheck shell=bash
# Shared by the scripts of this folder: where things are, steps with numbers, commands with a log. To be sourced by bash.
#
#   ROOT VENV PYTHON LOGS                 repository, .venv, its python, folder of logs
#   CARGO_TARGET_DIR LIBCLANG_PATH BINDGEN_EXTRA_CLANG_ARGS HPS_NVRTC PATH     exported by hps_env
#   CARGO_FEATURES                        set by hps_env: arguments for cargo where it builds hps-bridge
#   step, note, fail, run_logged          see below

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# The folder itself where .venv is a link to one that several clones share: pip writes the interpreter's path into the programs
# that it installs, and by the path of a clone they would end with that clone.
VENV="$(readlink -m "$ROOT/.venv")"
PYTHON="$VENV/bin/python"
LOGS="$ROOT/build/log"

# Steps of the calling script, for "[2/5]". Set by the script.
STEPS=0
_step=0

# step TITLE [EXPECTED TIME]
step() {
  _step=$((_step + 1))
  local number="[$_step]"
  if [ "$STEPS" -gt 0 ]; then
    number="[$_step/$STEPS]"
  fi
  printf '%s %s%s\n' "$number" "$1" "${2:+ ($2)}"
}

note() { printf '      %s\n' "$*"; }

fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# Prints seconds as minutes:seconds.
clock() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# Where cargo keeps its downloads and a rustup installation its programs.
cargo_home() { printf '%s' "${CARGO_HOME:-${HOME:-}/.cargo}"; }

# _package_folder PACKAGE FOLDER  prints the absolute path of a folder of a Python package.
_package_folder() {
  "$PYTHON" -c '
import importlib.util, os, sys
print(os.path.realpath(os.path.join(importlib.util.find_spec(sys.argv[1]).submodule_search_locations[0], sys.argv[2])))' \
    "$1" "$2"
}

# Environment of every build. The values must be the same in all scripts: cargo compiles RocksDB again (20 minutes on two cores)
# when LIBCLANG_PATH or BINDGEN_EXTRA_CLANG_ARGS changes. Needs .venv with libclang.
hps_env() {
  PATH="$VENV/bin:$PATH:$(cargo_home)/bin"
  export PATH
  export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$ROOT/target}"
  if [ -z "${LIBCLANG_PATH:-}" ]; then
    # By a link beside what is built with it, so that the value stays when the environment moves.
    local libclang
    libclang="$(_package_folder clang native)" || fail "libclang is not installed in $VENV; run scripts/setup"
    mkdir -p "$CARGO_TARGET_DIR"
    ln -sfn "$libclang" "$CARGO_TARGET_DIR/libclang"
    LIBCLANG_PATH="$CARGO_TARGET_DIR/libclang"
  fi
  export LIBCLANG_PATH
  # The compiler of the kernels; without it a library is built that serves CPU tensors alone.
  if [ -z "${HPS_NVRTC+set}" ]; then
    HPS_NVRTC="$(_package_folder nvidia.cuda_nvrtc lib)/libnvrtc.so.12" || fail "nvidia-cuda-nvrtc-cu12 is not installed in $VENV; run scripts/setup"
  fi
  export HPS_NVRTC
  # RocksDB with io_uring, if asked for; CMakeLists.txt does the same.
  # shellcheck disable=SC2034  # for whoever sources this
  if [ "${HPS_IO_URING:-0}" = 1 ]; then CARGO_FEATURES=(--features hps-bridge/io-uring); else CARGO_FEATURES=(); fi
  # libclang from PyPI comes without the compiler's own headers (stddef.h and the like).
  export BINDGEN_EXTRA_CLANG_ARGS="${BINDGEN_EXTRA_CLANG_ARGS:--I$(c++ -print-file-name=include)}"
}

# What a running build has reached: files of RocksDB compiled, or the last line of its log.
_progress() {
  local log="$1" started="$2" objects sources last
  last="$(tail -n 1 "$log" 2>/dev/null | tr -d '\r' | cut -c 1-100)" || true
  # RocksDB's build script says nothing while its C++ compiler runs; its folder of this build is the one that has changed.
  objects="$(find "${CARGO_TARGET_DIR:-/nonexistent}"/release/build/librocksdb-sys-*/out -name '*.o' -newermt "@$started" \
    2>/dev/null | wc -l)" || true
  if [ "$objects" -gt 0 ] && [[ $last == *Compiling* || $last == *Building* || -z $last ]]; then
    sources="$(cat "$(cargo_home)"/registry/src/*/librocksdb-sys-*/rocksdb_lib_sources.txt 2>/dev/null | wc -w)" || true
    last="RocksDB: $objects of about $((sources > objects ? sources : objects)) files compiled"
  fi
  printf '      %s  %s\n' "$(clock $(($(date +%s) - started)))" "$last"
}

# run_logged NAME COMMAND...  runs the command with its output in build/log/NAME.log, prints a line of progress every 15
# seconds, and on failure the end of the log.
run_logged() {
  local log="$LOGS/$1.log" started status=0 seconds=0
  shift
  mkdir -p "$LOGS"
  started="$(date +%s)"
  # A process group of its own, so that stopping the script stops all of the build.
  set -m
  "$@" >"$log" 2>&1 </dev/null &
  local job=$!
  set +m
  # shellcheck disable=SC2064  # the job of now
  trap "kill -- -$job 2>/dev/null || true; exit 130" INT TERM
  while kill -0 "$job" 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    if [ $((seconds % 15)) -eq 0 ]; then
      _progress "$log" "$started"
    fi
  done
  wait "$job" || status=$?
  trap - INT TERM
  if [ "$status" -ne 0 ]; then
    printf '\n--- the last lines of %s\n' "$log" >&2
    tail -n 40 "$log" >&2
    printf -- '---\n' >&2
    fail "failed with status $status: $*"
  fi
}
