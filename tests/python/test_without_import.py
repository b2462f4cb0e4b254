"""The library alone, without the Python package, serves eager and scripted models."""

import shutil

import pytest
import torch

import hps_torch
from conftest import StoreMaker

LOAD = """
import sys, torch
library, path, archive = sys.argv[1:4]
torch.ops.load_library(library)
keys = torch.arange(5)
"""


@pytest.fixture
def arguments(make_store: StoreMaker, tmp_path) -> list[str]:
    store = make_store()
    archive = str(tmp_path / "layer.pt")
    torch.jit.script(store.layer()).save(archive)
    return [hps_torch.library_path(), store.path, archive]


def test_eager_and_scripted_models_run(run_python, arguments: list[str]):
    done = run_python(
        LOAD
        + """
eager = torch.ops.hps.lookup(keys, path, "model", 0, 8).view(torch.int32)
named = torch.ops.hps_torch.hps_embedding_lookup(keys, path, "model", 0, 8).view(torch.int32)
scripted = torch.jit.load(archive)(keys).view(torch.int32)
assert torch.equal(eager, named) and torch.equal(eager, scripted)
assert "hps_torch" not in sys.modules
print(eager[:, 0].tolist())
""",
        *arguments,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0, 1, 2, 3, 4]"


def test_compiling_says_to_import_the_package(run_python, arguments: list[str]):
    done = run_python(
        LOAD
        + """
def lookup(keys):
    return torch.ops.hps.lookup(keys, path, "model", 0, 8)
torch.compile(lookup, fullgraph=True)(keys)
""",
        *arguments,
    )
    assert done.returncode != 0
    assert "import hps_torch" in done.stderr


def test_exporting_says_to_import_the_package(run_python, arguments: list[str]):
    done = run_python(
        LOAD
        + """
class Model(torch.nn.Module):
    def forward(self, keys):
        return torch.ops.hps.lookup(keys, path, "model", 0, 8)
torch.export.export(Model(), (keys,))
""",
        *arguments,
    )
    assert done.returncode != 0
    assert "import hps_torch" in done.stderr


def test_the_package_may_be_imported_after_the_library(run_python, arguments: list[str]):
    done = run_python(
        LOAD
        + """
before = torch.ops.hps.lookup(keys, path, "model", 0, 8).view(torch.int32)
import hps_torch
compiled = torch.compile(hps_torch.LookupLayer(path, "model", 0, 8), backend="aot_eager")
assert torch.equal(compiled(keys).view(torch.int32), before)
# One library, one set of stores.
assert hps_torch.stats(path)["models"]["model"]["tables"][0]["keys"] == 10
assert hps_torch.library_path() == library
""",
        *arguments,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_copy_loaded_first_serves_the_package_too(run_python, arguments: list[str], tmp_path):
    library = tmp_path / "elsewhere" / "libhps_torch.so"
    library.parent.mkdir()
    shutil.copy(arguments[0], library)

    done = run_python(
        LOAD
        + """
import hps_torch
hps_torch.open(path)
torch.ops.hps.lookup(keys, path, "model", 0, 8)
assert hps_torch.stats(path)["models"]["model"]["tables"][0]["keys"] == 5
assert hps_torch.library_path() == library, hps_torch.library_path()
""",
        library,
        *arguments[1:],
    )
    assert done.returncode == 0, done.stderr
