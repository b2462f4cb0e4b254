"""A store opens again without loading again, and takes changed tables over whole."""

import shutil
from pathlib import Path

import torch

import hps_torch
from conftest import StoreMaker, dense_table, random_bits, table_of
from oracle import Oracle, same_bits

ALL = torch.arange(20_000)


def written_bytes() -> int:
    """Bytes that this process has caused to be written to files."""
    fields = Path("/proc/self/io").read_text().split()
    return int(fields[fields.index("write_bytes:") + 1])


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_size) for path in folder.glob("*.sst")}


def test_reopening_with_unchanged_tables_rewrites_nothing(make_store: StoreMaker):
    store = make_store(dense_table(20_000, 32), tiers="host and ssd")
    before = written_bytes()
    hps_torch.open(store.path)
    loading = written_bytes() - before
    hps_torch.close(store.path)
    tables_before = files_of(store.folder / "rocksdb")

    before = written_bytes()
    hps_torch.open(store.path)
    reopening = written_bytes() - before

    table_bytes = 20_000 * 32 * 4
    assert loading >= table_bytes or tables_before
    assert reopening < table_bytes // 10
    assert tables_before.items() <= files_of(store.folder / "rocksdb").items()
    assert same_bits(store.lookup(ALL), store.oracles[0].lookup(ALL))


def test_a_changed_table_replaces_the_old_one_whole(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(1_000, default=9.0), tiers=tiers)
    hps_torch.open(store.path)
    hps_torch.close(store.path)
    # Half of the keys vanish, the others get new rows, some are new.
    new = table_of(torch.arange(500, 1_500), seed=5)
    hps_torch.save_table(store.table_folder(), new.keys, new.vectors)
    store.oracles[0] = Oracle(new.keys, new.vectors, 9.0)
    keys = torch.arange(-10, 1_600)

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
    assert store.stats()["missing"] == store.oracles[0].count_unknown(keys.tolist())


def test_a_table_with_new_rows_of_the_same_size_is_noticed(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(100), tiers=tiers)
    hps_torch.open(store.path)
    hps_torch.close(store.path)
    vectors = random_bits(100, 8, seed=77)
    hps_torch.save_table(store.table_folder(), torch.arange(100), vectors)

    assert same_bits(store.lookup(torch.arange(100)), vectors)


def test_a_closed_store_opens_by_itself(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    keys = torch.arange(10)
    for _ in range(3):
        assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
        assert store.stats()["keys"] == 10, "counts begin anew"
        hps_torch.close(store.path)


def test_a_read_only_database_serves_without_the_model_files(make_store: StoreMaker):
    store = make_store(dense_table(300), tiers="ssd")
    hps_torch.open(store.path)
    hps_torch.close(store.path)
    settings = {"read_only": True, "initialize_after_startup": False}
    store.rewrite(lambda config: config["persistent_db"].update(settings))
    shutil.rmtree(store.table_folder())

    keys = torch.arange(-5, 305)
    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
