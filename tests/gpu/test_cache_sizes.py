"""Rows stay exact while the cache takes rows in and gives others up, whatever its size."""

import torch

from gpu.common import DEVICE, each_arrangement, size, wait_until_cached
from gpu.tables import Table, random_keys, seeded

ROWS = size(6_000, 400)
STEPS = size(30, 8)
BATCH = size(2_000, 150)


class Popularity:
    """Random keys, a few of them much more often than the others; which ones changes with time."""

    def __init__(self, table: Table, seed: int) -> None:
        self._table = table
        self._generator = seeded(seed)
        self._order = torch.arange(len(table))

    def change(self) -> None:
        self._order = torch.randperm(len(self._table), generator=self._generator)

    def batch(self, most: int) -> torch.Tensor:
        """Returns up to `most` keys, one in twenty of them unknown."""
        count = int(torch.randint(most + 1, (1,), generator=self._generator))
        keys = self._table.sample(count, self._generator, unknown=1.0)
        skewed = torch.rand(count, generator=self._generator) ** 4
        popular = self._table.keys[self._order[(skewed * len(self._table)).long()]]
        known = torch.rand(count, generator=self._generator) < 0.95
        return torch.where(known, popular, keys)


@each_arrangement(caches=("dynamic", "uvm"))
class CacheSizes:
    def run_a_sequence(self, keys: torch.Tensor, share: float, seed: int, **settings) -> None:
        table = Table(keys, 32, default=-1.5)
        store = self.make_store(table, gpucacheper=share, **settings)
        popularity = Popularity(table, seed)
        for step in range(STEPS):
            if step % 10 == 0:
                popularity.change()
            self.check(store, popularity.batch(BATCH))
        # All of it at once, more than most of these caches hold.
        self.check(store, keys)
        store.close()

    def test_dense_ids(self):
        for seed, share in enumerate((0.0, 0.002, 0.1, 0.5, 1.0, 3.0)):
            with self.subTest(gpucacheper=share):
                self.run_a_sequence(torch.arange(ROWS), share, seed)

    def test_random_ids(self):
        for seed, share in enumerate((0.0, 0.05, 0.3, 3.0)):
            with self.subTest(gpucacheper=share):
                self.run_a_sequence(random_keys(ROWS), share, seed)

    def test_while_rows_move_within_host_memory(self):
        # Host memory holds a part of the rows only, and evicts under the GPU's eyes.
        host = {
            "cache_missed_embeddings": True,
            "overflow_margin": ROWS // 16,
            "overflow_policy": "evict_least_used",
        }
        if self.tiers == "host":
            # Without an SSD below, what is evicted would be gone.
            host = {"num_partitions": 1}
        for seed, share in enumerate((0.0, 0.1)):
            with self.subTest(gpucacheper=share):
                self.run_a_sequence(torch.arange(ROWS), share, seed, volatile_db=host)

    def test_rows_that_are_asked_for_enter_the_cache(self):
        table = Table(random_keys(ROWS), 16)
        store = self.make_store(table, gpucacheper=0.1)
        for seed in range(4):
            # A sixth of the slots: whoever had them before has to go.
            order = torch.randperm(ROWS, generator=seeded(seed))
            keys = table.keys[order[: ROWS // 60]].to(DEVICE)
            assert wait_until_cached(store, keys, share=0.9), store.counts()
            self.check(store, keys)

    def test_a_cache_larger_than_the_table_holds_all_of_it(self):
        table = Table(random_keys(ROWS), 16)
        store = self.make_store(table, gpucacheper=3.0)
        assert wait_until_cached(store, table.keys.to(DEVICE)), store.counts()
        self.check(store, table.keys)


@each_arrangement()
class ManyTables:
    def test_caches_of_several_tables_do_not_mix(self):
        # The same keys everywhere: only the table tells the rows apart.
        keys = torch.arange(size(1_000, 200))
        tables = [Table(keys, dim, default=dim) for dim in (4, 32, 33, 5, 64, 36)]
        store = self.make_store(*tables, gpucacheper=0.2)
        generator = seeded(2)
        for step in range(size(60, 12)):
            table_id = step % len(tables)
            self.check(store, tables[table_id].sample(300, generator), table_id)

    def test_fused_tables_share_their_keys_but_not_their_defaults(self):
        count = size(500, 100)
        both = torch.arange(2 * count)
        vectors = Table(both, 16).vectors
        tables = [
            Table(both[:count], 16, default=1.5, vectors=vectors[:count]),
            Table(both[count:], 16, default=-3.0, vectors=vectors[count:]),
        ]
        store = self.make_store(*tables, gpucacheper=0.2, top={"fuse_embedding_table": True})
        together = [Table(both, 16, table.default, vectors=vectors) for table in tables]
        store.tables = tuple(together)
        for step in range(10):
            keys = together[0].sample(300, seeded(step), unknown=0.2).to(DEVICE)
            for table_id in range(2):
                self.check(store, keys, table_id)
