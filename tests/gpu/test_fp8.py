"""`fp8_quant`: a static table keeps rows as 8-bit floats and yields their round trip."""

import threading

import torch

import hps_torch
from gpu.common import DEVICE, GpuTestCase, needs_allocator, needs_no_tool, size
from gpu.tables import Table, random_keys, same_bits, seeded

ROWS = size(3_000, 200)
DIMS = (1, 2, 3, 16, 32, 100, 128, 257)


def round_trip(rows: torch.Tensor) -> torch.Tensor:
    """What is read of float32 rows, by torch's own conversions."""
    scale = (rows.abs().amax(-1, keepdim=True) / 448).clamp(min=1 / (448 * 512))
    return (rows / scale).to(torch.float8_e4m3fn).to(torch.float32) * scale


def some_rows(count: int, dim: int, seed: int) -> torch.Tensor:
    """Returns rows of very different sizes, zeros among their numbers."""
    rows = torch.randn(count, dim, generator=seeded(seed))
    rows *= torch.exp(torch.randn(count, 1, generator=seeded(seed + 1)) * 4)
    rows[torch.rand(count, dim, generator=seeded(seed + 2)) < 0.1] = 0
    return rows


class Fp8(GpuTestCase):
    def check_round_trip(self, store, table_id, keys):
        table = store.tables[table_id]
        exact = table.expected(keys)
        known = torch.tensor([table.knows(key) for key in keys.tolist()])
        expected = torch.where(known[:, None], round_trip(exact), exact)
        rows = store.lookup(keys.to(DEVICE), table_id)
        assert same_bits(rows.cpu(), expected)
        return rows

    def tables(self):
        return [
            Table(
                torch.arange(ROWS) if i % 2 else random_keys(ROWS),
                dim,
                default=0.1,
                vectors=some_rows(ROWS, dim, dim),
            )
            for i, dim in enumerate(DIMS)
        ]

    def test_rows_are_their_round_trip_and_default_rows_exact(self):
        for settings in ({}, {"enable_pagelock": True}):
            store = self.make_store(*self.tables(), cache="static", fp8_quant=True, **settings)
            generator = seeded(1)
            for table_id, table in enumerate(store.tables):
                with self.subTest(dim=table.dim, settings=settings):
                    self.check_round_trip(store, table_id, table.keys)
                    for count in (1, 9, 1_000):
                        keys = table.sample(count, generator, unknown=0.3)
                        self.check_round_trip(store, table_id, keys)
            store.close()

    def test_keys_on_the_cpu_get_the_rows_that_were_loaded(self):
        store = self.make_store(*self.tables(), cache="static", fp8_quant=True)
        for table_id, table in enumerate(store.tables):
            assert same_bits(store.lookup(table.keys, table_id), table.expected(table.keys))

    def test_updates_are_rounded_too(self):
        store = self.make_store(*self.tables(), cache="static", fp8_quant=True)
        store.open()
        for table_id, table in enumerate(store.tables):
            keys, rows = table.keys[::3], some_rows(len(table.keys[::3]), table.dim, 99)
            hps_torch.update(store.path, "model", table_id, keys, rows)
            table.update(keys, rows)
            self.check_round_trip(store, table_id, table.keys)

    def test_erased_keys_get_the_default_row_and_a_refresh_changes_nothing(self):
        store = self.make_store(*self.tables(), cache="static", fp8_quant=True)
        store.open()
        for table_id, table in enumerate(store.tables):
            gone = table.keys[::4]
            hps_torch.erase(store.path, "model", table_id, gone)
            table.erase(gone)
        for _ in range(2):
            for table_id, table in enumerate(store.tables):
                self.check_round_trip(store, table_id, torch.cat([table.keys, table.keys[::4]]))
            assert hps_torch.refresh(store.path) > 0

    def test_rows_that_change_beside_lookups_are_read_whole(self):
        # Ones with a scale of 1, sevens with a scale of 1/64: numbers and scales of different
        # versions make neither.
        table = Table(random_keys(ROWS), 33)
        ones, sevens = torch.ones(ROWS, 33), torch.full((ROWS, 33), 7.0)
        ones[:, -1] = 448.0
        store = self.make_store(table, cache="static", fp8_quant=True)
        store.open()
        hps_torch.update(store.path, "model", 0, table.keys, ones)
        keys = table.keys.to(DEVICE)
        stopped = threading.Event()

        def write():
            while not stopped.is_set():
                for rows in (sevens, ones):
                    hps_torch.update(store.path, "model", 0, table.keys, rows)

        writer = threading.Thread(target=write)
        writer.start()
        seen = set()
        try:
            for _ in range(size(300, 20)):
                rows = store.lookup(keys)[:, :-1]
                assert bool((rows == rows[:, :1]).all())
                seen.update(rows[:, 0].unique().tolist())
        finally:
            stopped.set()
            writer.join()
        # Both, or the writer has not written.
        assert seen == {1.0, 7.0}, seen

    def test_what_is_no_number_stays_so_and_hurts_no_other_row(self):
        rows = some_rows(8, 32, 4)
        rows[1, 5] = float("nan")
        rows[3] = float("nan")
        rows[5, 7] = float("inf")
        rows[6] = 0
        rows[7] = -0.0
        table = Table(torch.arange(8), 32, vectors=rows)
        store = self.make_store(table, cache="static", fp8_quant=True)
        found = store.lookup(table.keys.to(DEVICE)).cpu()
        for row in (0, 2, 4, 6, 7):
            assert same_bits(found[row], round_trip(rows[row]))
        assert torch.equal(found[1].isnan(), rows[1].isnan())
        known = ~rows[1].isnan()
        assert same_bits(found[1][known], round_trip(rows[1][known]))
        # Beside an infinity, numbers cannot be told.
        assert bool(found[3].isnan().all())
        assert bool(found[5].isnan().all())

    def test_fused_tables_are_their_round_trip(self):
        tables = [
            Table(torch.arange(i * ROWS, (i + 1) * ROWS), 16, vectors=some_rows(ROWS, 16, i))
            for i in range(3)
        ]
        fused = {"fuse_embedding_table": True}
        store = self.make_store(*tables, cache="static", fp8_quant=True, top=fused)
        for table_id, table in enumerate(tables):
            self.check_round_trip(store, table_id, table.keys)

    @needs_no_tool
    def test_it_is_a_fraction_of_the_memory(self):
        rows = {}
        for fp8_quant in (False, True):
            table = Table(torch.arange(200_000), 128, vectors=some_rows(200_000, 128, 5))
            store = self.make_store(table, cache="static", fp8_quant=fp8_quant)
            torch.cuda.synchronize()
            before = torch.cuda.mem_get_info()[0]
            store.open()
            rows[fp8_quant] = before - torch.cuda.mem_get_info()[0]
            store.close()
        assert rows[True] < rows[False] / 2.5, rows

    def test_a_numbers_error_is_at_most_a_sixteenth(self):
        table = Table(torch.arange(500), 64, vectors=some_rows(500, 64, 7))
        store = self.make_store(table, cache="static", fp8_quant=True)
        rows = store.lookup(table.keys.to(DEVICE)).cpu()
        largest = table.vectors.abs().amax(-1, keepdim=True)
        error = (rows - table.vectors).abs()
        assert bool((error <= table.vectors.abs() / 16 + largest / 448 / 512).all())

    @needs_allocator
    def test_lookups_can_be_captured(self):
        table = Table(random_keys(ROWS), 32, vectors=some_rows(ROWS, 32, 3))
        store = self.make_store(table, cache="static", fp8_quant=True)
        keys = table.keys[:200].to(DEVICE)
        store.lookup(keys)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rows = store.lookup(keys)
        graph.replay()
        torch.cuda.synchronize()
        assert same_bits(rows.cpu(), round_trip(table.vectors[:200]))
