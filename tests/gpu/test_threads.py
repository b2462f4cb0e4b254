"""Many threads, each with a stream of its own, and rows that carry their own checksum."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

import hps_torch
from gpu.common import ALL_TIERS, DEVICE, each_arrangement, size
from gpu.tables import Table, assert_rows, bits, checksum, random_keys, seeded

THREADS = 8
STEPS = size(40, 5)
ROWS = size(5_000, 300)


def known_positions(table: Table, keys: torch.Tensor) -> torch.Tensor:
    positions = [i for i, key in enumerate(keys.tolist()) if table.knows(key)]
    return torch.tensor(positions, dtype=torch.int64, device=keys.device)


@each_arrangement(tiers=ALL_TIERS)
class Threads:
    def run_threads(self, work) -> None:
        """Runs `work(number)` in each thread, on a stream of its own; all start together."""
        start = threading.Barrier(THREADS, timeout=60)

        def run(number: int) -> None:
            stream = torch.cuda.Stream()
            start.wait()
            with torch.cuda.stream(stream):
                work(number)
                stream.synchronize()

        with ThreadPoolExecutor(THREADS) as pool:
            for future in [pool.submit(run, number) for number in range(THREADS)]:
                future.result()

    def test_threads_get_their_own_whole_rows(self):
        tables = [Table(random_keys(ROWS), 32), Table(torch.arange(ROWS), 100, default=9)]
        # So small that rows are taken in and evicted all the time.
        store = self.make_store(*tables, gpucacheper=0.05)
        store.open()
        most = size(3_000, 200)

        def work(number: int) -> None:
            generator = seeded(number)
            for step in range(STEPS):
                table_id = (number + step) % 2
                table = tables[table_id]
                count = int(torch.randint(most, (1,), generator=generator))
                keys = table.sample(count, generator).to(DEVICE)
                rows = store.lookup(keys, table_id)
                # Without the oracle: a torn row does not have the checksum that it carries.
                known = rows[known_positions(table, keys)]
                assert torch.equal(checksum(known), bits(known)[:, -1]), "a torn row"
                assert_rows(rows, keys, table)

        self.run_threads(work)
        assert all(store.counts(table_id)["keys"] > 0 for table_id in range(2))

    def test_threads_ask_for_the_same_keys(self):
        table = Table(torch.arange(ROWS), 64)
        store = self.make_store(table, gpucacheper=0.1)
        keys = torch.arange(0, ROWS, 7).to(DEVICE)
        torch.cuda.synchronize()

        def work(_: int) -> None:
            for _ in range(STEPS):
                assert_rows(store.lookup(keys), keys, table)

        # The first lookup of all opens the store.
        self.run_threads(work)
        # Had it been opened twice, one of the opens would have its counts.
        assert store.counts()["keys"] == THREADS * STEPS * len(keys)

    def test_cpu_and_gpu_keys_at_once(self):
        table = Table(random_keys(ROWS), 16)
        store = self.make_store(table, gpucacheper=0.1)

        def work(number: int) -> None:
            generator = seeded(number)
            for _ in range(STEPS):
                keys = table.sample(size(500, 100), generator)
                keys = keys if number % 2 else keys.to(DEVICE)
                assert_rows(store.lookup(keys), keys, table)

        self.run_threads(work)

    def test_a_store_may_be_closed_under_running_lookups(self):
        table = Table(random_keys(ROWS), 16)
        store = self.make_store(table, gpucacheper=0.1)
        keys = table.sample(size(500, 100), seeded(1)).to(DEVICE)
        expected = bits(table.expected(keys))
        torch.cuda.synchronize()
        stop = threading.Event()

        def work(number: int) -> None:
            if number == 0:
                try:
                    for _ in range(size(6, 2)):
                        hps_torch.open(store.path)
                        hps_torch.close(store.path)
                finally:
                    stop.set()
            while not stop.is_set():
                assert torch.equal(bits(store.lookup(keys)), expected)

        self.run_threads(work)
