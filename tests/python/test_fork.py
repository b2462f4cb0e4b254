"""A child made by fork after a store was opened gets an error; it never hangs."""

import pytest

from conftest import StoreMaker

FORK = """
import os, signal, sys, torch, hps_torch
path = sys.argv[1]
keys = torch.arange(5)

def in_child(work):
    # Forks, runs work in the child for at most 20 seconds, returns what it printed.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            text = work()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, str(text).encode())
        os._exit(0)
    os.close(writer)
    text = os.fdopen(reader).read()
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child ended with status {status}"
    return text

def lookup():
    return hps_torch.lookup(keys, path, "model", 0, 8).shape
"""


def test_a_child_gets_an_error_that_says_what_to_do(make_store: StoreMaker, tiers: str, run_python):
    store = make_store(tiers=tiers)
    done = run_python(
        f"{FORK}\n"
        """
lookup()
operations = [hps_torch.open, hps_torch.stats, hps_torch.close]
for operation in [lambda _: lookup(), *operations, lambda _: hps_torch.close_all()]:
    print(in_child(lambda: operation(path)))
print(lookup())
""",
        store.path,
    )

    assert done.returncode == 0, done.stderr
    *children, parent = done.stdout.splitlines()
    assert len(children) == 5
    for child in children:
        assert "Error" in child
        assert "fork" in child
        assert "spawn" in child
    assert parent == "torch.Size([5, 8])"


def test_a_child_may_be_the_first_to_open(make_store: StoreMaker, run_python):
    store = make_store(tiers="host and ssd")
    done = run_python(f"{FORK}\nprint(in_child(lookup))", store.path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([5, 8])"


@pytest.mark.parametrize("tiers", ["host", "ssd"])
def test_a_child_that_ends_like_a_program_neither_hangs_nor_fails(
    make_store: StoreMaker, tiers: str, run_python
):
    # As the workers of a server that loads its model before it forks them.
    store = make_store(tiers=tiers)
    done = run_python(
        f"{FORK}\n"
        """
lookup()
child = os.fork()
if child == 0:
    signal.alarm(20)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(lookup())
""",
        store.path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([5, 8])"


def test_a_child_ends_cleanly_whatever_was_opened_first(make_store: StoreMaker, run_python):
    # RocksDB's static objects are made by the second or third opening only.
    host, both = make_store(tiers="host"), make_store(tiers="host and ssd")
    done = run_python(
        """
import os, signal, sys, torch, hps_torch
host, both = sys.argv[1:]
for path in ("/nonexistent/ps.json", host, both):
    try:
        hps_torch.open(path)
    except hps_torch.HpsError as error:
        print(error.code.name)
child = os.fork()
if child == 0:
    signal.alarm(20)
    print("printed by the child")
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""",
        host.path,
        both.path,
    )
    assert done.returncode == 0, done.stderr
    assert "CONFIG" in done.stdout
    assert "printed by the child" in done.stdout


DATASET = """
import torch, hps_torch
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __init__(self, path):
        self.layer = hps_torch.LookupLayer(path, "model", 0, 8)
    def __len__(self):
        return 6
    def __getitem__(self, index):
        return self.layer(torch.tensor([index]))
"""

LOADER = """
import sys
from rows import Rows, DataLoader, hps_torch, torch
if __name__ == "__main__":
    path, context, open_first = sys.argv[1:]
    if open_first == "True":
        hps_torch.lookup(torch.arange(2), path, "model", 0, 8)
    loader = DataLoader(
        Rows(path), batch_size=3, num_workers=1, multiprocessing_context=context, timeout=40
    )
    print(sum(len(batch) for batch in loader))
"""


@pytest.mark.parametrize(
    ("context", "open_first", "works"),
    [("fork", True, False), ("fork", False, True), ("spawn", True, True)],
)
def test_a_data_loader_worker(
    make_store: StoreMaker, run_python, tmp_path, context: str, open_first: bool, works: bool
):
    store = make_store()
    (tmp_path / "rows.py").write_text(DATASET)
    (tmp_path / "loader.py").write_text(LOADER)

    done = run_python(
        "import runpy; runpy.run_path('loader.py', run_name='__main__')",
        store.path,
        context,
        open_first,
        env={"PYTHONPATH": str(tmp_path)},
    )

    if works:
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "6"
    else:
        assert done.returncode != 0
        assert 'multiprocessing_context="spawn"' in done.stderr
