"""Importing the package loads the library once, checks it, and starts nothing."""

import importlib.metadata
from pathlib import Path

import torch

import hps_torch
from hps_torch import _library


def test_the_operators_have_the_promised_schemas():
    arguments = "Tensor keys, str ps_config_file, str model_name, int table_id, int emb_vec_size"
    for packet, name in (
        (torch.ops.hps.lookup, "hps::lookup"),
        (torch.ops.hps_torch.hps_embedding_lookup, "hps_torch::hps_embedding_lookup"),
    ):
        assert str(packet.default._schema) == f"{name}({arguments}) -> Tensor"


def test_the_library_lies_in_the_package():
    path = Path(hps_torch.library_path())

    assert path.is_file()
    assert path.name == "libhps_torch.so"


def test_the_version_is_the_librarys_and_the_distributions():
    assert hps_torch.__version__ == hps_torch.version()
    assert hps_torch.__version__ == importlib.metadata.version("hps_torch")


def test_the_package_is_typed_and_names_its_contents():
    assert (Path(hps_torch.__file__).parent / "py.typed").is_file()
    for name in hps_torch.__all__:
        assert hasattr(hps_torch, name)


def test_an_old_torch_is_refused_in_one_message(run_python):
    done = run_python("import torch; torch.__version__ = '2.9.1+cpu'; import hps_torch")

    assert done.returncode != 0
    message = done.stderr[done.stderr.index("ImportError") :]
    assert f"hps_torch {hps_torch.__version__}" in message
    assert "torch found: 2.9.1+cpu; torch needed: 2.10 or newer" in message


def test_a_missing_torch_is_named(run_python):
    done = run_python("import sys; sys.modules['torch'] = None; import hps_torch")

    assert done.returncode != 0
    assert "torch found: not installed; torch needed: 2.10 or newer" in done.stderr


def test_an_operator_of_another_version_is_refused(run_python):
    done = run_python(
        "import torch\n"
        "other = torch.library.Library('hps', 'DEF')\n"
        "other.define('lookup(Tensor keys, str table) -> Tensor')\n"
        "import hps_torch"
    )

    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "hps::lookup(Tensor keys, str table) -> Tensor" in done.stderr


def test_a_library_that_cannot_be_loaded_is_named(run_python, tmp_path):
    package = tmp_path / "hps_torch"
    package.mkdir()
    for source in Path(_library.__file__).parent.glob("*.py"):
        (package / source.name).write_bytes(source.read_bytes())

    done = run_python("import hps_torch", env={"PYTHONPATH": str(tmp_path)})

    assert done.returncode != 0
    assert f"{package}/lib/libhps_torch.so" in done.stderr
    assert f"torch found: {torch.__version__}" in done.stderr


def test_importing_starts_no_thread(run_python):
    done = run_python(
        "import os, torch\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "import hps_torch\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    assert done.stdout.strip() == "0", done.stderr


def test_importing_twice_changes_nothing(run_python):
    done = run_python(
        "import importlib, sys, hps_torch\n"
        "importlib.reload(hps_torch)\n"
        "first = hps_torch.library_path()\n"
        "for name in [name for name in sys.modules if name.startswith('hps_torch')]:\n"
        "    del sys.modules[name]\n"
        "import hps_torch\n"
        "assert hps_torch.library_path() == first"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
