"""`hit_rate_threshold`: batches that hit often enough do not wait for the rows that they miss.

Not given, every answer is exact: that is what all other tests say.
"""

import torch

from gpu.common import (
    DEVICE,
    each_arrangement,
    needs_no_tool,
    wait_until,
    wait_until_cached,
)
from gpu.tables import Table, assert_rows, bits, random_keys, seeded

ROWS = 4_000


@each_arrangement(caches=("dynamic",))
class Threshold:
    def opened(self, **settings):
        self.table = Table(random_keys(ROWS), 16, default=0.5)
        self.store = self.make_store(self.table, gpucacheper=0.1, **settings)
        self.store.open()
        order = torch.randperm(ROWS, generator=seeded(1))
        self.hot = self.table.keys[order[:100]].to(DEVICE)
        # No two batches have keys in common: what was asked for once is cached later.
        self.fresh = iter(self.table.keys[order[100:]].to(DEVICE).split(30))

    def lookup(self, keys: torch.Tensor) -> tuple[torch.Tensor, dict[str, int]]:
        """Returns rows and counts; every row must be the right one or the default row."""
        found = []
        counts = self.store.counts_of(lambda: found.append(self.store.lookup(keys)))
        assert counts["keys"] == keys.numel()
        default = torch.full((1, 16), 0.5, device=DEVICE)
        right = (bits(found[0]) == bits(self.table.expected(keys))).all(-1)
        empty = (bits(found[0]) == bits(default)).all(-1)
        assert (right | empty).all(), "a row that is neither the key's nor the default"
        return right, counts

    def becomes_exact(self, keys: torch.Tensor) -> bool:
        return wait_until(lambda: bool(self.lookup(keys)[0].all()))

    def test_zero_answers_misses_with_defaults_at_once_and_rows_later(self):
        self.opened(hit_rate_threshold=0.0)
        keys = torch.cat([next(self.fresh) for _ in range(4)])

        right, counts = self.lookup(keys)

        # What the warm-up had put there is found; the cache holds a tenth of the table.
        assert int(right.sum()) == counts["gpu_hits"], counts
        assert int(right.sum()) < 90, counts
        assert self.becomes_exact(keys), "the rows did not come within ten seconds"

    def test_zero_never_makes_up_rows_for_unknown_keys(self):
        self.opened(hit_rate_threshold=0.0)
        unknown = random_keys(50, seed=99).to(DEVICE)
        for _ in range(5):
            assert_rows(self.store.lookup(unknown), unknown, self.table)

    def test_one_and_above_is_exact(self):
        for threshold in (1.0, 1.5):
            self.opened(hit_rate_threshold=threshold)
            for _ in range(5):
                self.check(self.store, torch.cat([self.hot, next(self.fresh)]))
            self.check(self.store, self.table.keys)

    def test_a_batch_below_the_threshold_is_exact(self):
        self.opened(hit_rate_threshold=0.5)
        assert wait_until_cached(self.store, self.hot)
        for _ in range(5):
            # Three of 33, and some that the warm-up had put there; repetitions do not count.
            few = torch.cat([self.hot[:3].repeat(100), next(self.fresh)])
            right, counts = self.lookup(few)
            assert right.all(), counts

    # Rows are taken in by chance, so that this takes hundreds of lookups.
    @needs_no_tool
    def test_a_batch_above_the_threshold_does_not_wait(self):
        self.opened(hit_rate_threshold=0.5)
        assert wait_until_cached(self.store, self.hot)
        defaults = 0
        for _ in range(5):
            fresh = next(self.fresh)
            right, counts = self.lookup(torch.cat([self.hot, fresh]))
            assert int(right[:100].sum()) > 90, counts
            assert int(right.sum()) == counts["gpu_hits"], counts
            defaults += int((~right).sum())
            assert self.becomes_exact(torch.cat([self.hot, fresh])), counts
            # Those that came in may have pushed others out.
            assert wait_until_cached(self.store, self.hot)
        assert defaults > 0, "of 150 keys none was missed"


@each_arrangement(caches=("static", "uvm"))
class WithoutEffect:
    def test_static_and_uvm_are_exact_at_any_threshold(self):
        table = Table(random_keys(ROWS), 16)
        for threshold in (0.0, 0.5, 1.0):
            store = self.make_store(table, gpucacheper=0.05, hit_rate_threshold=threshold)
            generator = seeded(2)
            for _ in range(5):
                self.check(store, table.sample(500, generator))
