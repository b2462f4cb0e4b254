"""Host memory begins with the rows that it held when the store was closed, or some time before."""

import time

import torch

import hps_torch
from conftest import StoreMaker, dense_table
from oracle import same_bits

ROWS = 4_000
HOT = torch.arange(1_000, 1_100)


def make(make_store: StoreMaker, **settings):
    store = make_store(dense_table(ROWS), tiers="host and ssd")
    store.rewrite(
        lambda config: config["volatile_db"].update(
            initial_cache_rate=1.0,
            cache_missed_embeddings=True,
            overflow_margin=ROWS // 40,
            overflow_policy="evict_oldest",
            hot_keys_path="hot",
            **settings,
        )
    )
    return store


def hits(store) -> int:
    """How many of the hot keys are in host memory."""
    before = store.stats()["host_hits"]
    assert same_bits(store.lookup(HOT), store.oracles[0].lookup(HOT))
    return store.stats()["host_hits"] - before


def heat(store) -> None:
    deadline = time.monotonic() + 20
    while hits(store) < len(HOT):
        assert time.monotonic() < deadline, "the rows were not promoted"
        time.sleep(0.01)


def test_a_store_that_was_closed_opens_warm(make_store: StoreMaker):
    store = make(make_store)
    hps_torch.open(store.path)
    heat(store)
    hps_torch.close(store.path)
    hps_torch.open(store.path)
    assert hits(store) == len(HOT)


def test_lists_are_saved_while_a_store_is_open(make_store: StoreMaker):
    store = make(make_store, hot_keys_interval=1)
    hps_torch.open(store.path)
    heat(store)
    deadline = time.monotonic() + 20
    while not list((store.folder / "hot").glob("*.hot")):
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.05)
