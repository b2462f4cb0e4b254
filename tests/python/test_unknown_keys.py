"""A key that is in no tier yields its table's default row, and is counted."""

import pytest
import torch

import hps_torch
from conftest import StoreMaker, dense_table, tier_settings
from oracle import same_bits


def test_an_unknown_key_gets_the_default_row(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(default=-2.5), dense_table(default=7.0, seed=1), tiers=tiers)
    keys = torch.tensor([3, 1_000, -1, 99, 100])

    for table_id, default in enumerate((-2.5, 7.0)):
        rows = store.lookup(keys, table_id)
        assert same_bits(rows, store.oracles[table_id].lookup(keys))
        assert rows[[1, 2, 4]].unique().tolist() == [default]
        assert store.stats(table_id)["missing"] == 3
        assert store.stats(table_id)["keys"] == 5


def test_unknown_keys_are_counted_each_time(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    for step in range(1, 4):
        store.lookup(torch.tensor([500, 500, 501, 1]))
        assert store.stats()["missing"] == 3 * step


def test_missing_defaults_are_zero_and_warned_about(make_store: StoreMaker, capfd):
    tables = [dense_table(seed=i) for i in range(3)]
    store = make_store(*tables, default_value_for_each_table=[4.0])
    unknown = torch.tensor([12_345])

    values = [store.lookup(unknown, i).unique().tolist() for i in range(3)]

    assert values == [[4.0], [0.0], [0.0]]
    assert "default_value_for_each_table" in capfd.readouterr().err


def test_unknown_keys_are_not_kept_in_host_memory(make_store: StoreMaker):
    store = make_store(tiers="host and ssd")
    store.rewrite(lambda config: config["volatile_db"].update(cache_missed_embeddings=True))
    hps_torch.open(store.path)
    held = store.stats()["host"]["rows"]

    store.lookup(torch.arange(5_000, 6_000))
    store.lookup(torch.arange(5_000, 6_000))

    stats = store.stats()
    assert stats["missing"] == 2_000
    assert stats["promoted"] == 0
    assert stats["host"]["rows"] == held


@pytest.mark.parametrize("database", ["volatile_db", "persistent_db"])
def test_no_database_at_all_is_an_error(make_store: StoreMaker, database: str):
    # The predecessor served default rows for every key, with a line in the log.
    disabled = {"volatile_db": {"type": "disabled"}}
    if database == "persistent_db":
        disabled[database] = {"type": "disabled"}
    store = make_store(top=disabled)

    with pytest.raises(hps_torch.HpsError, match="volatile_db"):
        hps_torch.open(store.path)

    store.rewrite(lambda config: config.update(tier_settings("host")))
    assert same_bits(store.lookup(torch.arange(5)), store.oracles[0].lookup(torch.arange(5)))
