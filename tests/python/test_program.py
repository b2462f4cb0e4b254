"""The program `hps`, installed with the package, beside a process that serves the same tables."""

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import torch

import hps_torch
from conftest import Store, StoreMaker, dense_table, random_bits

PROGRAM = Path(sysconfig.get_path("scripts")) / "hps"


def hps(command: str, store: Store) -> tuple[int, Any]:
    """Returns the exit status and the JSON object of a command."""
    done = subprocess.run(
        [PROGRAM, command, store.path, "--json"], capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout)


def test_what_it_loads_is_served_without_loading_again(make_store: StoreMaker, capfd):
    store = make_store(dense_table(500), tiers="host and ssd")
    status, loaded = hps("load", store)
    assert status == 0
    assert loaded["tables"][0]["rows"] == 500
    hps_torch.open(store.path)
    assert "loaded 500 rows" not in capfd.readouterr().err
    assert torch.equal(
        store.lookup(torch.arange(500)).view(torch.int32),
        store.oracles[0].lookup(torch.arange(500)).view(torch.int32),
    )


def test_a_table_that_is_served_can_be_looked_into(make_store: StoreMaker):
    store = make_store(dense_table(500), tiers="host and ssd")
    hps_torch.open(store.path)
    for command in ("check", "inspect", "verify"):
        assert hps(command, store)[0] == 0, command
    # Not written to: this process has it.
    for command in ("load", "compact"):
        status, answer = hps(command, store)
        assert status == 1
        assert answer["error"]["kind"] == "storage", answer


def test_updates_are_told_from_damage(make_store: StoreMaker):
    store = make_store(dense_table(500, 8), tiers="host and ssd")
    keys = torch.tensor([3, 4, 1_000])
    hps_torch.update(store.path, store.model, 0, keys, random_bits(3, 8, seed=1))
    hps_torch.erase(store.path, store.model, 0, torch.tensor([7]))
    hps_torch.close(store.path)
    status, verified = hps("verify", store)
    assert status == 0
    table = verified["tables"][0]
    assert (table["rows"], table["rows_loaded"]) == (500, None)
    assert (table["files"]["differing"], table["files"]["missing"]) == (2, 1)
    assert table["files"]["examples"] == [3, 4, 7]
    assert not table["problems"]
    assert any("written since" in note for note in table["notes"])
    assert hps("compact", store)[0] == 0
    assert hps("verify", store)[1]["tables"][0]["rows"] == 500
