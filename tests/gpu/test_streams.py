"""Lookups are work of torch's current stream: in order with what comes before and after."""

import time

import torch

import hps_torch
from gpu.common import (
    DEVICE,
    GpuTestCase,
    each_arrangement,
    needs_allocator,
    needs_no_tool,
    size,
)
from gpu.tables import Table, assert_rows, bits, random_keys, same_bits, seeded

ROWS = size(5_000, 300)
BATCH = size(3_000, 200)
#: About 10 ms of an H100: until then the GPU has not begun what was queued.
PAUSE = size(20_000_000, 1_000_000)


@each_arrangement()
class Streams:
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.table = Table(random_keys(ROWS), 32)
        cls.store = cls.make_class_store(cls.table, gpucacheper=0.1)
        cls.store.open()

    def setUp(self):
        self.generator = seeded(11)
        self.stream = torch.cuda.Stream()

    def batch(self) -> torch.Tensor:
        return self.table.sample(BATCH, self.generator).to(DEVICE)

    def test_keys_may_come_from_a_kernel_right_before(self):
        for _ in range(size(10, 3)):
            wanted = self.batch()
            masked = wanted ^ 0x5A5A
            torch.cuda.synchronize()
            with torch.cuda.stream(self.stream):
                torch.cuda._sleep(PAUSE)
                keys = masked ^ 0x5A5A
                rows = self.store.lookup(keys)
                seen = bits(rows) ^ 0x0F0F
            self.stream.synchronize()
            assert same_bits((seen ^ 0x0F0F).view(torch.float32), self.table.expected(wanted))

    def test_keys_may_be_deleted_right_after(self):
        for _ in range(size(10, 3)):
            wanted = self.batch()
            torch.cuda.synchronize()
            with torch.cuda.stream(self.stream):
                torch.cuda._sleep(PAUSE)
                keys = wanted + 0
                rows = self.store.lookup(keys)
                del keys
                # Of the same size on the same stream: torch gives them the keys' memory.
                others = [torch.full_like(wanted, 12_345 + i) for i in range(3)]
            self.stream.synchronize()
            assert_rows(rows, wanted, self.table)
            assert all((other == 12_345 + i).all() for i, other in enumerate(others))

    def test_rows_may_be_deleted_right_after(self):
        for _ in range(size(10, 3)):
            wanted = self.batch()
            torch.cuda.synchronize()
            with torch.cuda.stream(self.stream):
                torch.cuda._sleep(PAUSE)
                rows = self.store.lookup(wanted)
                copy = rows.clone()
                del rows
                others = [torch.full_like(copy, 3.0) for _ in range(3)]
            self.stream.synchronize()
            # Insertions in the background have ended by then, or write where they may.
            time.sleep(0.01)
            assert_rows(copy, wanted, self.table)
            assert all((other == 3.0).all() for other in others)

    def test_lookups_follow_each_other_without_waiting_for_the_host(self):
        wanted = [self.batch() for _ in range(20)]
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(PAUSE)
            found = [self.store.lookup(keys) for keys in wanted]
        self.stream.synchronize()
        for rows, keys in zip(found, wanted, strict=True):
            assert_rows(rows, keys, self.table)

    def test_one_stream_waits_for_another_by_an_event(self):
        first, second = torch.cuda.Stream(), torch.cuda.Stream()
        wanted = self.batch()
        torch.cuda.synchronize()
        with torch.cuda.stream(first):
            torch.cuda._sleep(PAUSE)
            rows = self.store.lookup(wanted + 0)
            done = first.record_event()
        with torch.cuda.stream(second):
            second.wait_event(done)
            copy = rows.clone()
        second.synchronize()
        assert_rows(copy, wanted, self.table)

    def test_inference_mode(self):
        with torch.inference_mode():
            keys = self.batch()
            rows = self.store.lookup(keys)
        assert rows.is_inference()
        assert_rows(rows, keys, self.table)

    def test_the_other_devices_and_streams_stay_current(self):
        with torch.cuda.stream(self.stream):
            self.store.lookup(self.batch())
            assert torch.cuda.current_stream() == self.stream
        assert torch.cuda.current_device() == DEVICE.index

    def test_closing_waits_for_queued_lookups(self):
        for _ in range(size(3, 1)):
            wanted = self.batch()
            self.store.open()
            torch.cuda.synchronize()
            with torch.cuda.stream(self.stream):
                torch.cuda._sleep(5 * PAUSE)
                rows = self.store.lookup(wanted)
            hps_torch.close(self.store.path)
            # What the cache gave back may be another's by now.
            junk = torch.full((1 << 20,), 7.0, device=DEVICE)
            self.stream.synchronize()
            assert_rows(rows, wanted, self.table)
            assert (junk == 7.0).all()


class NeverWaiting(GpuTestCase):
    @needs_no_tool
    def test_static_and_uvm_lookups_only_queue_work(self):
        table = Table(random_keys(ROWS), 32)
        for cache in ("static", "uvm"):
            with self.subTest(cache=cache):
                store = self.make_store(table, cache=cache, gpucacheper=0.1)
                wanted = table.sample(BATCH, seeded(3)).to(DEVICE)
                # Torch has the memory for all results from here on.
                found = [store.lookup(wanted) for _ in range(10)]
                del found
                torch.cuda.synchronize()
                # Half a second.
                torch.cuda._sleep(1_000_000_000)
                paused = torch.cuda.current_stream().record_event()
                found = [store.lookup(wanted) for _ in range(10)]
                assert not paused.query(), "the lookups waited for the GPU"
                for rows in found:
                    assert_rows(rows, wanted, table)


@each_arrangement(caches=("uvm", "dynamic"), tiers=("host",))
class LargeLookups:
    # Of so many keys that rows in host memory are read in the order of their addresses.
    KEYS = 1 << 15

    @needs_no_tool
    def test_one_stream_does_not_wait_for_another(self):
        table = Table(random_keys(size(5_000, 500)), 32)
        store = self.make_store(table, gpucacheper=0.01)
        generator = seeded(8)
        keys = table.sample(self.KEYS, generator).to(DEVICE)
        self.check(store, keys)
        torch.cuda.synchronize()
        blocked, free = torch.cuda.Stream(), torch.cuda.Stream()
        with torch.cuda.stream(blocked):
            torch.cuda._sleep(2_000_000_000)  # about a second
            first = store.lookup(keys)
        with torch.cuda.stream(free):
            second = store.lookup(keys)
        free.synchronize()
        assert not blocked.query(), "the other stream had ended, or was waited for"
        assert_rows(second, keys, table)
        blocked.synchronize()
        assert_rows(first, keys, table)

    @needs_allocator
    def test_a_graph_of_a_large_lookup_is_exact(self):
        table = Table(random_keys(size(5_000, 500)), 32)
        store = self.make_store(table, gpucacheper=0.01)
        generator = seeded(9)
        keys = torch.zeros(self.KEYS, dtype=torch.int64, device=DEVICE)
        store.lookup(keys)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rows = store.lookup(keys)
        for _ in range(3):
            keys.copy_(table.sample(self.KEYS, generator))
            eager = store.lookup(keys)
            graph.replay()
            torch.cuda.synchronize()
            assert_rows(rows, keys, table)
            assert_rows(eager, keys, table)
