"""Which tier serves what: host memory, SSD, or one above the other."""

import time

import pytest
import torch

import hps_torch
from conftest import StoreMaker, dense_table
from oracle import same_bits

ROWS = 1_000
ALL = torch.arange(ROWS)


def set_host(store, **settings) -> None:
    store.rewrite(lambda config: config["volatile_db"].update(settings))


def test_host_memory_alone_serves_everything(make_store: StoreMaker):
    store = make_store(dense_table(ROWS))

    assert same_bits(store.lookup(ALL), store.oracles[0].lookup(ALL))
    stats = store.stats()
    assert (stats["host_hits"], stats["ssd_hits"], stats["missing"]) == (ROWS, 0, 0)
    assert stats["host"]["rows"] == ROWS
    assert stats["host"]["bytes"] >= ROWS * 8 * 4
    assert "ssd" not in stats


def test_the_ssd_alone_serves_everything(make_store: StoreMaker):
    store = make_store(dense_table(ROWS), tiers="ssd")

    assert same_bits(store.lookup(ALL), store.oracles[0].lookup(ALL))
    stats = store.stats()
    assert (stats["host_hits"], stats["ssd_hits"], stats["missing"]) == (0, ROWS, 0)
    assert stats["ssd"]["rows"] == ROWS
    assert "host" not in stats


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_host_memory_holds_the_share_that_was_asked_for(make_store: StoreMaker, rate: float):
    store = make_store(dense_table(ROWS), tiers="host and ssd")
    set_host(store, initial_cache_rate=rate)

    assert same_bits(store.lookup(ALL), store.oracles[0].lookup(ALL))
    stats = store.stats()
    assert stats["host"]["rows"] == pytest.approx(ROWS * rate, abs=8)
    assert stats["host_hits"] == stats["host"]["rows"]
    assert stats["ssd_hits"] == ROWS - stats["host_hits"]


def test_a_rate_of_one_serves_from_host_memory(make_store: StoreMaker):
    store = make_store(dense_table(ROWS), tiers="host and ssd")
    set_host(store, initial_cache_rate=1.0)
    store.lookup(ALL)

    assert store.stats()["host_hits"] == ROWS


def test_a_rate_of_zero_serves_from_the_ssd(make_store: StoreMaker):
    store = make_store(dense_table(ROWS), tiers="host and ssd")
    set_host(store, initial_cache_rate=0.0)

    assert same_bits(store.lookup(ALL), store.oracles[0].lookup(ALL))
    assert store.stats()["ssd_hits"] == ROWS


def test_missed_rows_stay_below_unless_configured(make_store: StoreMaker):
    store = make_store(dense_table(ROWS), tiers="host and ssd")
    for _ in range(3):
        store.lookup(ALL)

    stats = store.stats()
    assert stats["promoted"] == 0
    assert stats["ssd_hits"] == 3 * (ROWS - stats["host"]["rows"])


def test_missed_rows_are_promoted_if_configured(make_store: StoreMaker):
    store = make_store(dense_table(ROWS), tiers="host and ssd")
    set_host(store, cache_missed_embeddings=True)
    deadline = time.monotonic() + 20

    # Promotion may run behind the lookup.
    while True:
        before = store.stats()["ssd_hits"] if _is_open(store) else -1
        assert same_bits(store.lookup(ALL), store.oracles[0].lookup(ALL))
        if store.stats()["ssd_hits"] == before:
            break
        assert time.monotonic() < deadline, store.stats()

    stats = store.stats()
    assert stats["host"]["rows"] == ROWS
    assert stats["promoted"] >= ROWS // 2 - 8


def _is_open(store) -> bool:
    try:
        hps_torch.stats(store.path)
    except hps_torch.HpsError:
        return False
    return True


def test_a_volatile_database_without_a_type_is_disabled_and_warned_about(
    make_store: StoreMaker, capfd
):
    store = make_store(dense_table(ROWS), tiers="ssd")
    store.rewrite(lambda config: config["volatile_db"].pop("type"))

    assert same_bits(store.lookup(ALL), store.oracles[0].lookup(ALL))
    assert "host" not in store.stats()
    assert "volatile_db" in capfd.readouterr().err


def test_without_database_sections_host_memory_serves(make_store: StoreMaker):
    store = make_store(dense_table(ROWS))
    store.rewrite(lambda config: config.pop("volatile_db"))

    assert same_bits(store.lookup(ALL), store.oracles[0].lookup(ALL))
    assert store.stats()["host_hits"] == ROWS


@pytest.mark.parametrize("spelling", ["hash_map", "hashmap", "hash", "map", "parallel_hash"])
def test_hash_maps_are_spelt_as_the_predecessor_did(make_store: StoreMaker, spelling: str):
    store = make_store()
    set_host(store, type=spelling)
    keys = torch.arange(10)

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


def test_an_overflow_margin_bounds_what_host_memory_holds(make_store: StoreMaker):
    store = make_store(dense_table(ROWS), tiers="host and ssd")
    set_host(store, initial_cache_rate=1.0, num_partitions=1, overflow_margin=100)

    assert same_bits(store.lookup(ALL), store.oracles[0].lookup(ALL))
    assert 0 < store.stats()["host"]["rows"] <= 100
