"""What libhps_torch.so shows to the process, and what it asks of it."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hps_torch

LIBRARY = Path(hps_torch.library_path())
HEADER = LIBRARY.parent.parent / "include" / "hps.h"

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


def tool(*command: str) -> list[str]:
    """Runs a tool of binutils on the library."""
    return subprocess.run(
        [*command, str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def dynamic(tag: str) -> list[str]:
    """Returns the values of one tag of the library's dynamic section."""
    return [
        re.sub(r".*\[(.*)\].*|.*\)\s+(.*)", lambda match: match[1] or match[2], line)
        for line in tool("readelf", "--dynamic", "--wide")
        if f"({tag})" in line
    ]


def exported() -> set[str]:
    return {line.split()[-1] for line in tool("nm", "--dynamic", "--defined-only")}


def undefined() -> set[str]:
    """Returns what the library expects from others, without symbol versions."""
    symbols = (line.split()[-1] for line in tool("nm", "--dynamic", "--undefined-only"))
    return {symbol.split("@")[0] for symbol in symbols}


def defined_by(library: Path) -> set[str]:
    lines = subprocess.run(
        ["nm", "--dynamic", "--defined-only", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines}


def libtorch(name: str = "libtorch_cpu.so") -> Path:
    return Path(torch.__file__).parent / "lib" / name


def test_exports_the_functions_of_the_header_and_nothing_else() -> None:
    declared = set(re.findall(r"^[a-z].* \*?(hps_\w+)\(", HEADER.read_text(), re.MULTILINE))
    assert "hps_open" in declared
    assert exported() == declared


def test_needs_libtorch_cpu_after_libstdcxx_and_nothing_of_cuda_or_python() -> None:
    needed = dynamic("NEEDED")
    # libtorch exports a private copy of parts of libstdc++: whichever is named first serves
    # our calls.
    assert needed.index("libstdc++.so.6") < needed.index("libtorch_cpu.so")
    allowed = {"libgcc_s.so.1", "libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}
    allowed |= {"libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1"}
    assert set(needed) - allowed == {"libstdc++.so.6", "libtorch_cpu.so"}


def test_carries_no_path_into_the_machine_that_built_it() -> None:
    assert dynamic("RPATH") == []
    assert dynamic("RUNPATH") == []
    assert dynamic("SONAME") == ["libhps_torch.so"]
    sources = str(Path(__file__).resolve().parents[2])
    assert sources.encode() not in LIBRARY.read_bytes()


def test_is_bound_at_load_to_itself_first_and_never_unloaded() -> None:
    flags = " ".join(dynamic("FLAGS") + dynamic("FLAGS_1"))
    for flag in ("NOW", "NODELETE", "SYMBOLIC"):
        assert flag in flags


def test_uses_torch_through_its_stable_c_interface_only() -> None:
    from_torch = undefined() & defined_by(libtorch())
    # Also defined by libstdc++, which is asked first (see the test of the order).
    standard = {symbol for symbol in from_torch if symbol.startswith(("_ZNSt", "_ZSt", "_ZNKSt"))}
    others = {
        symbol
        for symbol in from_torch - standard
        if not symbol.startswith(("aoti_torch_", "torch_"))
    }
    assert others == set()
    mangled = {symbol for symbol in undefined() if re.search(r"2at|3c10|5torch|8caffe2", symbol)}
    assert mangled == set()
    assert "aoti_torch_get_data_ptr" not in undefined()  # the const and mutable forms replace it
    assert "torch_library_impl" in from_torch


def test_needs_no_symbol_newer_than_torch_2_10() -> None:
    """Every name here is in torch 2.10; a new one must be looked up before it is added."""
    known = re.compile(
        r"aoti_torch_(abi_version|delete_\w+_object|device_type_\w+|dtype_\w+|empty_strided|"
        r"get_(const_data_ptr|device_index|device_type|dim|dtype|layout|numel|sizes)|"
        r"is_(contiguous|defined)|layout_strided|library_(def|init_def|init_impl)|"
        r"memory_format_contiguous_format|new_tensor_handle)"
        r"|torch_(call_dispatcher|delete_string|get_(const|mutable)_data_ptr|library_impl|"
        r"parallel_for|string_(c_str|length))"
    )
    used = {symbol for symbol in undefined() if re.match(r"(aoti_)?torch_", symbol)}
    assert {symbol for symbol in used if not known.fullmatch(symbol)} == set()


def test_both_operators_have_the_promised_schema() -> None:
    arguments = "Tensor keys, str ps_config_file, str model_name, int table_id, int emb_vec_size"
    for name in ("hps::lookup", "hps_torch::hps_embedding_lookup"):
        namespace, operator = name.split("::")
        overload = getattr(getattr(torch.ops, namespace), operator).default
        assert str(overload._schema) == f"{name}({arguments}) -> Tensor"


def test_version_is_that_of_the_package() -> None:
    library = ctypes.CDLL(str(LIBRARY))
    library.hps_version.restype = ctypes.c_char_p
    assert library.hps_version().decode() == hps_torch.__version__


TWO_COPIES = """
import ctypes, sys, torch
for path in sys.argv[1:]:
    torch.ops.load_library(path)
for path in sys.argv[1:]:
    library = ctypes.CDLL(path)
    library.hps_ops_library.restype = ctypes.c_char_p
    print(library.hps_ops_library().decode())
try:
    torch.ops.hps.lookup(torch.arange(2), "/nonexistent/ps.json", "m", 0, 1)
except RuntimeError as error:
    print("nonexistent" in str(error))
"""


def test_second_copy_is_harmless(tmp_path: Path, run_python: RunPython) -> None:
    copy = shutil.copy(LIBRARY, tmp_path / "libhps_torch_copy.so")
    done = run_python(TWO_COPIES, LIBRARY, copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(LIBRARY), str(LIBRARY), "True"]
    assert done.stderr == ""


def test_preloaded_copy_serves_the_package(tmp_path: Path, run_python: RunPython) -> None:
    copy = shutil.copy(LIBRARY, tmp_path / "libhps_torch.so")
    script = "import hps_torch; print(hps_torch.library_path())"
    environment = {"LD_PRELOAD": str(copy), "LD_LIBRARY_PATH": str(libtorch().parent)}
    done = run_python(script, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(copy)]


def test_namespace_taken_by_another_library_leaves_our_own(run_python: RunPython) -> None:
    script = """
import sys, torch
other = torch.library.Library("hps_torch", "DEF")
other.define("hps_embedding_lookup(Tensor keys) -> Tensor")
torch.ops.load_library(sys.argv[1])
print(torch.ops.hps.lookup.default._schema.name)
"""
    done = run_python(script, LIBRARY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["hps::lookup"]
    assert "hps_torch::*" in done.stderr
    assert "are not available" in done.stderr


def test_loading_without_torch_says_what_is_missing() -> None:
    loader = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", loader, str(LIBRARY)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode == 0:
        pytest.skip("LibTorch is where the dynamic linker finds it by itself")
    assert "libtorch_cpu.so" in done.stderr
