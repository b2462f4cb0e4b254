"""A store that fails leaves the process, and every other store, usable."""

import pytest
import torch

import hps_torch
from conftest import StoreMaker
from oracle import same_bits

KEYS = torch.arange(-2, 50)


def test_a_store_that_cannot_open_does_not_disturb_others(make_store: StoreMaker):
    good, bad = make_store(), make_store(tiers="host and ssd")
    bad.rewrite(lambda config: config["models"][0].update(embedding_vecsize_per_table=[9]))
    layer = bad.layer()
    scripted = torch.jit.script(layer)

    for _ in range(3):
        for failing in (layer, scripted):
            with pytest.raises(RuntimeError, match="emb_vector"):
                failing(KEYS)
        assert same_bits(good.lookup(KEYS), good.oracles[0].lookup(KEYS))

    bad.rewrite(lambda config: config["models"][0].update(embedding_vecsize_per_table=[8]))
    assert same_bits(scripted(KEYS), bad.oracles[0].lookup(KEYS))


def test_a_failed_open_leaves_nothing_open(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    (store.table_folder() / "emb_vector").write_bytes(bytes(12))

    for _ in range(3):
        with pytest.raises(hps_torch.HpsError):
            hps_torch.open(store.path)
    for operation in (hps_torch.close, hps_torch.stats):
        with pytest.raises(hps_torch.HpsError) as caught:
            operation(store.path)
        assert caught.value.code == hps_torch.ErrorCode.NOT_FOUND


def test_a_database_path_that_is_a_file_is_an_error(make_store: StoreMaker):
    store = make_store(tiers="ssd")
    (store.folder / "rocksdb").write_text("not a database")

    with pytest.raises(hps_torch.HpsError, match="rocksdb"):
        hps_torch.open(store.path)

    (store.folder / "rocksdb").unlink()
    assert same_bits(store.lookup(KEYS), store.oracles[0].lookup(KEYS))


def test_a_database_held_by_another_process_is_an_error_that_says_so(
    make_store: StoreMaker, run_python
):
    store = make_store(tiers="ssd")
    hps_torch.open(store.path)

    done = run_python("import sys, hps_torch; hps_torch.open(sys.argv[1])", store.path)

    assert done.returncode != 0
    assert "HpsError" in done.stderr
    assert str(store.folder / "rocksdb") in done.stderr
    assert same_bits(store.lookup(KEYS), store.oracles[0].lookup(KEYS))


def test_many_failures_leak_no_file_handles(make_store: StoreMaker):
    import os

    store = make_store(tiers="host and ssd")
    with pytest.raises(RuntimeError):
        hps_torch.lookup(KEYS, store.path, "none", 0, 8)
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(20):
        hps_torch.close(store.path)
        with pytest.raises(RuntimeError):
            hps_torch.lookup(KEYS, store.path, "none", 0, 8)

    # RocksDB starts a new log file at each open.
    assert len(os.listdir("/proc/self/fd")) <= before + 5


def test_errors_carry_their_code(make_store: StoreMaker):
    store = make_store()
    with pytest.raises(hps_torch.HpsError) as caught:
        hps_torch.close(store.path)
    assert caught.value.code is hps_torch.ErrorCode.NOT_FOUND
    assert isinstance(caught.value, RuntimeError)

    store.rewrite(lambda config: config.pop("models"))
    with pytest.raises(hps_torch.HpsError) as caught:
        hps_torch.open(store.path)
    assert caught.value.code is hps_torch.ErrorCode.CONFIG


def test_an_error_survives_pickling():
    import pickle

    error = hps_torch.HpsError("why", hps_torch.ErrorCode.STORAGE)
    again = pickle.loads(pickle.dumps(error))

    assert (str(again), again.code) == ("why", hps_torch.ErrorCode.STORAGE)
