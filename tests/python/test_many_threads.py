"""Lookups from many threads at once give each thread its own rows."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

import hps_torch
from conftest import StoreMaker, dense_table
from oracle import same_bits

THREADS = 8


def test_threads_get_their_own_rows(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(2_000), dense_table(500, 3, seed=1), tiers=tiers)
    start = threading.Barrier(THREADS)

    def work(seed: int) -> bool:
        generator = torch.Generator().manual_seed(seed)
        start.wait()
        for step in range(20):
            table_id = (seed + step) % 2
            keys = torch.randint(-50, 2_100, (257,), generator=generator)
            if not same_bits(store.lookup(keys, table_id), store.oracles[table_id].lookup(keys)):
                return False
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(work, range(THREADS)))
    assert sum(store.stats(t)["keys"] for t in (0, 1)) == THREADS * 20 * 257


def test_a_store_opens_once_however_many_threads_arrive(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(5_000), tiers=tiers)
    keys = torch.arange(10)
    start = threading.Barrier(THREADS)

    def first_lookup(_: int) -> torch.Tensor:
        start.wait()
        return store.lookup(keys)

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(first_lookup, range(THREADS)))

    assert all(same_bits(rows, store.oracles[0].lookup(keys)) for rows in results)
    # Had it been opened twice, one of the opens would have its counts.
    assert store.stats()["keys"] == THREADS * 10


def test_a_store_may_be_closed_under_running_lookups(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(1_000), tiers=tiers)
    keys = torch.arange(-10, 1_000)
    expected = store.oracles[0].lookup(keys)
    stop = threading.Event()

    def work(_: int) -> bool:
        good = True
        while not stop.is_set():
            good &= same_bits(store.lookup(keys), expected)
        return good

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(work, i) for i in range(3)]
        for _ in range(10):
            hps_torch.open(store.path)
            hps_torch.close(store.path)
        stop.set()
        assert all(worker.result() for worker in workers)


def test_other_python_threads_run_while_a_store_opens(make_store: StoreMaker):
    store = make_store(dense_table(200_000, 16), tiers="host and ssd")
    done = threading.Event()
    opener = threading.Thread(target=lambda: (hps_torch.open(store.path), done.set()))
    ticks = 0

    opener.start()
    while not done.wait(0.001):
        ticks += 1
    opener.join()

    # Loading takes tens of milliseconds at least; with the GIL held there would be one tick.
    assert ticks > 3
