"""CUDA graphs: lookups are captured and replayed with new keys, or say that they cannot be."""

import torch

from gpu.common import DEVICE, each_arrangement, message_of, size
from gpu.tables import Table, assert_rows, random_keys, seeded

ROWS = size(5_000, 300)
BATCH = size(1_000, 100)
REPLAYS = 20


def captured(work) -> tuple[torch.cuda.CUDAGraph, object]:
    """Captures `work` and returns the graph with what it returned."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph, result


@each_arrangement(caches=("static", "uvm"))
class Graphs:
    def setUp(self):
        self.generator = seeded(3)

    def opened(self, *tables: Table):
        store = self.make_store(*tables, gpucacheper=0.1)
        store.open()
        return store

    def test_a_graph_is_replayed_with_new_keys(self):
        table = Table(random_keys(ROWS), 32)
        store = self.opened(table)
        for count in (BATCH, 1, 33):
            keys = torch.zeros(count, dtype=torch.int64, device=DEVICE)
            store.lookup(keys)
            graph, rows = captured(lambda keys=keys: store.lookup(keys))
            for _ in range(REPLAYS):
                keys.copy_(table.sample(count, self.generator))
                graph.replay()
                assert_rows(rows, keys, table)
        store.counts()

    def test_the_first_lookup_of_an_open_store_may_be_captured(self):
        table = Table(torch.arange(ROWS), 128)
        store = self.opened(table)
        keys = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
        graph, rows = captured(lambda: store.lookup(keys))
        keys.copy_(table.sample(BATCH, self.generator))
        graph.replay()
        assert_rows(rows, keys, table)

    def test_several_lookups_and_other_work_in_one_graph(self):
        tables = [Table(torch.arange(ROWS), dim, default=dim) for dim in (4, 32, 100)]
        store = self.opened(*tables)
        masked = torch.zeros((10, BATCH // 10), dtype=torch.int64, device=DEVICE)

        def work() -> list[torch.Tensor]:
            keys = masked ^ 0x77
            return [store.lookup(keys, table_id).clone() for table_id in range(3)]

        work()
        graph, found = captured(work)
        for _ in range(REPLAYS):
            keys = tables[0].sample(BATCH, self.generator).reshape(masked.shape).to(DEVICE)
            masked.copy_(keys ^ 0x77)
            graph.replay()
            for table_id in range(3):
                assert_rows(found[table_id], keys, tables[table_id])

    def test_two_graphs_run_at_the_same_time_as_eager_lookups(self):
        table = Table(random_keys(ROWS), 64)
        store = self.opened(table)
        streams = [torch.cuda.Stream() for _ in range(2)]
        inputs = [torch.zeros(BATCH, dtype=torch.int64, device=DEVICE) for _ in streams]
        graphs = [captured(lambda keys=keys: store.lookup(keys)) for keys in inputs]
        for _ in range(REPLAYS):
            for keys in inputs:
                keys.copy_(table.sample(BATCH, self.generator))
            eager = table.sample(BATCH, self.generator).to(DEVICE)
            torch.cuda.synchronize()
            for stream, (graph, _) in zip(streams, graphs, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
            rows = store.lookup(eager)
            torch.cuda.synchronize()
            assert_rows(rows, eager, table)
            for keys, (_, found) in zip(inputs, graphs, strict=True):
                assert_rows(found, keys, table)

    def test_a_graph_without_keys(self):
        store = self.opened(Table(torch.arange(ROWS), 8))
        keys = torch.zeros((0, 3), dtype=torch.int64, device=DEVICE)
        other = torch.zeros(4, device=DEVICE)
        graph, (rows, _) = captured(lambda: (store.lookup(keys), other.add_(1)))
        graph.replay()
        assert rows.shape == (0, 3, 8)
        assert other.tolist() == [1.0] * 4

    def test_errors_while_capturing_leave_the_stream_usable(self):
        table = Table(torch.arange(ROWS), 8)
        store = self.opened(table)
        keys = torch.arange(BATCH, device=DEVICE)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            message = message_of(
                lambda: torch.ops.hps.lookup(keys, store.path, "another", 0, 8),
            )
            rows = store.lookup(keys)
        assert "another" in message
        graph.replay()
        assert_rows(rows, keys, table)

    def test_background_work_of_another_store_does_not_break_a_capture(self):
        busy_table = Table(random_keys(ROWS), 32)
        busy = self.make_store(busy_table, cache="dynamic", gpucacheper=0.1)
        table = Table(torch.arange(ROWS), 16)
        store = self.opened(table)
        keys = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
        for _ in range(size(20, 5)):
            # New keys: they are inserted behind this lookup.
            self.check(busy, busy_table.sample(BATCH, self.generator))
            graph, rows = captured(lambda: store.lookup(keys))
            keys.copy_(table.sample(BATCH, self.generator))
            graph.replay()
            assert_rows(rows, keys, table)


@each_arrangement(caches=("dynamic",))
class DynamicGraphs:
    def test_is_captured_exactly_or_refused_before_anything_is_queued(self):
        table = Table(random_keys(ROWS), 32)
        store = self.make_store(table, gpucacheper=0.1)
        generator = seeded(4)
        keys = table.sample(BATCH, generator).to(DEVICE)
        self.check(store, keys)
        counter = torch.zeros(4, device=DEVICE)
        before = store.counts()
        stream = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        rows, message = None, ""
        with torch.cuda.graph(graph, stream=stream):
            try:
                rows = store.lookup(keys)
            except RuntimeError as error:
                message = str(error)
            # The capture goes on: nothing has spoilt it.
            counter.add_(1)

        if self.tiers == "host and ssd":
            assert rows is None, "captured, although the GPU cannot reach every row"
        if rows is None:
            assert "captur" in message.lower(), message
            assert "static or uvm" in message, message
            assert store.counts() == before, "a refused lookup was counted"
        for step in range(1, REPLAYS + 1):
            keys.copy_(table.sample(BATCH, generator))
            graph.replay()
            torch.cuda.synchronize()
            assert counter.tolist() == [float(step)] * 4
            if rows is not None:
                assert_rows(rows, keys, table)
        with torch.cuda.stream(stream):
            self.check(store, keys)
        self.check(store, table.sample(BATCH, generator))
