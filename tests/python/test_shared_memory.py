"""`multi_process_hash_map`: several processes serve one copy of the tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import hps_torch
from conftest import Store, StoreMaker, dense_table, random_bits, tier_settings
from oracle import same_bits

SHARED = "shared memory"

#: Looks all keys up, changes some, and says what it found.
OTHER = """
import json, sys, torch, hps_torch
path, task = sys.argv[1:]
hps_torch.open(path)
rows = hps_torch.lookup(torch.arange(-5, 300), path, "model", 0, 8)
if task == "update":
    hps_torch.update(path, "model", 0, torch.tensor([3, 1_000]), torch.ones(2, 8))
    hps_torch.erase(path, "model", 0, torch.tensor([4]))
stats = hps_torch.stats(path)["models"]["model"]["tables"][0]
print(json.dumps({"rows": rows.view(torch.int32).tolist(), "stats": stats}))
if task == "stay":
    print("ready", flush=True)
    sys.stdin.read()
"""


def start(store: Store, task: str, path: str | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, path or store.path, task],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[dict, str]:
    """Returns what another process found, and what it told on stderr."""
    out, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    return json.loads(out.splitlines()[0]), told


def expected(store: Store) -> list[list[int]]:
    return store.oracles[0].lookup(torch.arange(-5, 300)).view(torch.int32).tolist()


def segment(store: Store) -> Path:
    return Path("/dev/shm", store.config()["volatile_db"]["shared_memory_name"] + ".hps")


def test_one_process_loads_and_all_see_what_any_writes(make_store: StoreMaker):
    store = make_store(dense_table(200, 8, default=0.5), tiers=SHARED)
    hps_torch.open(store.path)
    found, told = finish(start(store, "update"))
    assert found["rows"] == expected(store)
    assert "loaded" not in told, "the table was there"
    assert found["stats"]["host_hits"] == 200
    store.oracles[0].update(torch.tensor([3, 1_000]), torch.ones(2, 8))
    store.oracles[0].erase(torch.tensor([4]))
    keys = torch.arange(-5, 1_005)
    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


def test_processes_that_start_together_agree(make_store: StoreMaker):
    store = make_store(dense_table(200, 8), tiers=SHARED)
    results = [finish(process) for process in [start(store, "look") for _ in range(4)]]
    assert all(found["rows"] == expected(store) for found, _ in results)
    # The last to leave removes it; then nobody had it.
    assert sum("loaded 200 rows" in told for _, told in results) >= 1
    assert not segment(store).exists()


def test_it_outlives_a_process_that_is_killed(make_store: StoreMaker):
    store = make_store(dense_table(200, 8), tiers=SHARED)
    process = start(store, "stay")
    assert process.stdout is not None
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert segment(store).is_dir()
    found, told = finish(start(store, "look"))
    assert found["rows"] == expected(store)
    assert "loaded" not in told
    assert not segment(store).exists()


def test_readers_of_a_database_share_the_rows_that_one_of_them_cached(make_store: StoreMaker):
    store = make_store(dense_table(200, 8), tiers="ssd")
    shared = {**tier_settings(SHARED)["volatile_db"], "shared_memory_auto_remove": True}
    store.rewrite(lambda config: config.update(volatile_db=shared))
    hps_torch.open(store.path)
    config = store.config()
    config["persistent_db"]["read_only"] = True
    reader = store.folder / "reader.json"
    reader.write_text(json.dumps(config))
    found, _ = finish(start(store, "look", str(reader)))
    assert found["rows"] == expected(store)
    assert (found["stats"]["host_hits"], found["stats"]["ssd_hits"]) == (200, 0)
    # An update reaches the readers through the shared rows.
    rows = random_bits(1, 8, seed=3)
    hps_torch.update(store.path, store.model, 0, torch.tensor([7]), rows)
    store.oracles[0].update(torch.tensor([7]), rows)
    assert finish(start(store, "look", str(reader)))[0]["rows"] == expected(store)


def test_what_does_not_fit_is_an_error_with_the_sum(make_store: StoreMaker):
    store = make_store(dense_table(20_000, 64), tiers=SHARED)
    store.rewrite(lambda config: config["volatile_db"].update(shared_memory_size=1 << 20))
    with pytest.raises(hps_torch.HpsError, match=r"shared_memory_size allows 1048576.*raise it"):
        hps_torch.open(store.path)
    store.rewrite(lambda config: config["volatile_db"].update(shared_memory_size=64 << 20))
    hps_torch.open(store.path)


def test_other_settings_of_the_same_segment_are_refused(make_store: StoreMaker):
    store = make_store(dense_table(200, 8), tiers=SHARED)
    hps_torch.open(store.path)
    other = store.folder / "other.json"
    config = store.config()
    config["volatile_db"]["shared_memory_auto_remove"] = False
    other.write_text(json.dumps(config))
    with pytest.raises(hps_torch.HpsError, match="shared_memory_auto_remove is false"):
        hps_torch.open(str(other))


def test_a_segment_that_is_kept_is_there_for_the_next_start(make_store: StoreMaker, capfd):
    store = make_store(dense_table(200, 8), tiers=SHARED)
    store.rewrite(lambda config: config["volatile_db"].update(shared_memory_auto_remove=False))
    try:
        hps_torch.open(store.path)
        hps_torch.update(store.path, store.model, 0, torch.tensor([7]), torch.ones(1, 8))
        store.oracles[0].update(torch.tensor([7]), torch.ones(1, 8))
        hps_torch.close(store.path)
        capfd.readouterr()
        began = time.monotonic()
        hps_torch.open(store.path)
        assert time.monotonic() - began < 5
        assert "loaded" not in capfd.readouterr().err
        keys = torch.arange(300)
        assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
        hps_torch.close(store.path)
    finally:
        for file in segment(store).iterdir():
            file.unlink()
        segment(store).rmdir()
