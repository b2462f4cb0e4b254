"""What `ps.json` says about the GPU, and stores beside each other."""

import threading

import torch

import hps_torch
from gpu.common import DEVICE, GpuTestCase, each_arrangement, size, start_python
from gpu.tables import Table, assert_rows, random_keys, seeded

ROWS = size(3_000, 200)


@each_arrangement(caches=("dynamic",))
class WithoutCache:
    def test_gpu_keys_are_served_from_the_tiers_below(self):
        table = Table(random_keys(ROWS), 32)
        store = self.make_store(table, Table(torch.arange(ROWS), 5), gpucache=False)
        generator = seeded(1)
        for step in range(20):
            table_id = step % 2
            keys = store.tables[table_id].sample(size(1_000, 100), generator)
            self.check(store, keys, table_id)
        for keys in (torch.empty((0, 3), dtype=torch.int64), torch.tensor(5), table.keys):
            self.check(store, keys)
        assert store.counts()["gpu_hits"] == 0

    def test_on_a_stream_with_keys_from_a_kernel_right_before(self):
        table = Table(random_keys(ROWS), 32)
        store = self.make_store(table, gpucache=False)
        wanted = table.sample(500, seeded(2)).to(DEVICE)
        masked = wanted ^ 0x1111
        store.open()
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(size(20_000_000, 1_000_000))
            rows = store.lookup(masked ^ 0x1111)
            copy = rows + 0
            rows.zero_()
        stream.synchronize()
        # Adding zero keeps all bits but those of a NaN's kind.
        ordinary = ~copy.isnan()
        expected = table.expected(wanted)
        assert torch.equal(ordinary, ~expected.isnan())
        assert torch.equal(copy[ordinary], expected[ordinary])


class OtherSettings(GpuTestCase):
    def test_settings_that_change_where_but_not_what(self):
        table = Table(random_keys(ROWS), 32)
        for settings in (
            {"cache": "static", "enable_pagelock": True},
            {"use_static_table": True},
            {"use_hctr_cache_implementation": False, "gpucacheper": 0.1},
            {"cache_refresh_percentage_per_iteration": 1.0, "gpucacheper": 0.1},
            {"cache_refresh_percentage_per_iteration": 0.2, "gpucacheper": 1.0},
            {"init_ec": False, "gpucacheper": 0.1},
            {"max_batch_size": 1, "num_of_worker_buffer_in_pool": 1},
            {"use_context_stream": False},
        ):
            with self.subTest(settings=settings):
                store = self.make_store(table, **settings)
                generator = seeded(3)
                for _ in range(5):
                    self.check(store, table.sample(500, generator))
                store.close()

    def test_the_ssd_alone_is_below_the_gpu(self):
        table = Table(random_keys(ROWS), 32)
        for cache in ("static", "dynamic", "uvm"):
            with self.subTest(cache=cache):
                store = self.make_store(
                    table,
                    cache=cache,
                    tiers="host and ssd",
                    gpucacheper=0.1,
                    volatile_db={"type": "disabled"},
                )
                generator = seeded(4)
                for _ in range(5):
                    self.check(store, table.sample(500, generator))

    def test_stores_of_all_types_beside_each_other(self):
        # The same keys with other rows in each.
        tables = [Table(torch.arange(ROWS), dim, default=dim) for dim in (8, 32, 24)]
        stores = [
            self.make_store(table, cache=cache, gpucacheper=0.1)
            for table, cache in zip(tables, ("static", "dynamic", "uvm"), strict=True)
        ]
        generator = seeded(5)
        for step in range(size(60, 12)):
            self.check(stores[step % 3], tables[step % 3].sample(200, generator))
            if step % 9 == 8:
                hps_torch.close(stores[step % 3].path)

    def test_a_store_that_opens_does_not_disturb_another(self):
        table = Table(random_keys(ROWS), 32)
        busy = self.make_store(table, gpucacheper=0.1)
        opened = self.make_store(table, cache="static")
        keys = table.sample(300, seeded(6)).to(DEVICE)
        busy.open()

        def open_and_close() -> None:
            for _ in range(size(5, 2)):
                hps_torch.open(opened.path)
                hps_torch.close(opened.path)

        thread = threading.Thread(target=open_and_close)
        thread.start()
        while thread.is_alive():
            assert_rows(busy.lookup(keys), keys, table)
        thread.join()


class StartUp(GpuTestCase):
    def test_a_store_may_open_before_torch_has_touched_the_gpu(self):
        table = Table(torch.arange(100), 8)
        store = self.make_store(table)
        program = start_python(
            """
import sys, torch
from gpu.common import hps_torch
path = sys.argv[1]
hps_torch.open(path)
assert not torch.cuda.is_initialized()
rows = torch.ops.hps.lookup(torch.arange(120), path, "model", 0, 8)
found = torch.ops.hps.lookup(torch.arange(120, device="cuda"), path, "model", 0, 8)
assert torch.equal(found.view(torch.int32).cpu(), rows.view(torch.int32))
hps_torch.close(path)
print("exact")
""",
            store.path,
        )
        output, _ = program.communicate(timeout=120)
        assert program.returncode == 0, output
        assert output.rstrip().endswith("exact"), output
