"""Statistics say what was asked and where it was found, and add up."""

import pytest
import torch

import hps_torch
from conftest import StoreMaker, dense_table
from oracle import same_bits

HITS = ("gpu_hits", "host_hits", "redis_hits", "ssd_hits", "missing")


def adds_up(table) -> bool:
    return table["keys"] == sum(table[name] for name in HITS)


def test_counts_add_up(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(), dense_table(50, seed=1), tiers=tiers)
    generator = torch.Generator().manual_seed(3)
    asked = [0, 0]
    for step in range(30):
        keys = torch.randint(-30, 130, (step * 7,), generator=generator)
        store.lookup(keys, step % 2)
        asked[step % 2] += len(keys)
        assert adds_up(store.stats(0))
        assert adds_up(store.stats(1))

    assert [store.stats(i)["keys"] for i in (0, 1)] == asked


def test_missing_keys_are_those_the_oracle_does_not_know(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    keys = torch.randint(-100, 200, (1_000,))
    store.lookup(keys)

    assert store.stats()["missing"] == store.oracles[0].count_unknown(keys.tolist())


def test_statistics_name_what_they_count(make_store: StoreMaker):
    store = make_store(
        dense_table(), dense_table(20, 4), model="ranking", embedding_table_names=["users", "items"]
    )
    hps_torch.open(store.path)

    stats = hps_torch.stats(store.path)
    assert stats["config"] == store.path
    assert list(stats["models"]) == ["ranking"]
    tables = stats["models"]["ranking"]["tables"]
    assert [table["table_id"] for table in tables] == [0, 1]
    assert [table["name"] for table in tables] == ["users", "items"]
    assert [table["dim"] for table in tables] == [8, 4]
    assert [table["storage_name"] for table in tables] == [
        "hps_et.ranking.users",
        "hps_et.ranking.items",
    ]


def test_tables_without_names_are_called_as_the_predecessor_did(make_store: StoreMaker):
    store = make_store(dense_table(), dense_table())
    hps_torch.open(store.path)

    assert store.stats(1)["name"] == "sparse_embedding1"


def test_opening_counts_nothing(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    hps_torch.open(store.path)
    hps_torch.open(store.path)

    assert [store.stats()[name] for name in (*HITS, "keys", "promoted")] == [0] * 7


def test_a_failed_lookup_counts_nothing(make_store: StoreMaker):
    store = make_store()
    hps_torch.open(store.path)
    with pytest.raises(RuntimeError):
        hps_torch.lookup(torch.arange(3), store.path, "model", 0, 9)

    assert store.stats()["keys"] == 0


def test_statistics_open_nothing(make_store: StoreMaker):
    store = make_store()
    with pytest.raises(hps_torch.HpsError) as caught:
        hps_torch.stats(store.path)

    assert caught.value.code == hps_torch.ErrorCode.NOT_FOUND
    assert store.path in str(caught.value)


def test_bytes_held_are_near_the_rows_own(make_store: StoreMaker):
    store = make_store(dense_table(100_000, 32))
    hps_torch.open(store.path)
    host = store.stats()["host"]

    assert host["rows"] == 100_000
    assert 100_000 * 32 * 4 <= host["bytes"] <= 100_000 * (32 * 4 + 32)


@pytest.mark.parametrize("tiers", ["host", "host and ssd"])
def test_keys_that_lie_close_together_take_no_index(make_store: StoreMaker, tiers: str):
    table = dense_table(200_000)
    all_in_host_memory = {"volatile_db": {"type": "parallel_hash_map", "num_partitions": 4}}
    store = make_store(table, tiers=tiers, top=all_in_host_memory)
    keys = torch.randint(-10, 200_100, (1_000,))
    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))

    held = store.stats()["host"]
    assert held["rows"] == 200_000
    # An index takes 13 bytes a row; what is left over of slabs depends on num_partitions.
    assert held["bytes"] / held["rows"] - table.dim * 4 < 8
