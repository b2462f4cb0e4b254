"""Rows that change under the GPU's eyes: by updates and erasures, alone and beside lookups."""

import json
import os
import threading
from pathlib import Path

import torch

import hps_torch
from gpu.common import ALL_TIERS, DEVICE, each_arrangement, message_of, needs_allocator, size
from gpu.tables import Table, bits, checksum, random_keys, seeded

ROWS = size(4_000, 300)
STEPS = size(80, 12)
BATCH = size(1_500, 100)


def update(store, keys: torch.Tensor, rows: torch.Tensor) -> None:
    hps_torch.update(store.path, "model", 0, keys, rows)
    store.tables[0].update(keys, rows)


def erase(store, keys: torch.Tensor) -> None:
    hps_torch.erase(store.path, "model", 0, keys)
    store.tables[0].erase(keys)


@each_arrangement(tiers=ALL_TIERS)
class Updating:
    def run_a_sequence(self, table: Table, share: float, seed: int) -> None:
        store = self.make_store(table, gpucacheper=share)
        generator = seeded(seed)
        # As many as there is room for, and like those that are there: tables tell keys apart by
        # what they have seen when they were opened.
        is_dense = int(table.keys[-1]) == len(table) - 1
        new = torch.arange(ROWS, ROWS + size(100, 5)) if is_dense else random_keys(size(100, 5), 99)
        everything = torch.cat([table.keys, new])
        for step in range(STEPS):
            count = int(torch.randint(1, BATCH, (1,), generator=generator))
            keys = everything[torch.randint(len(everything), (count,), generator=generator)]
            match step % 5:
                case 0:
                    update(store, keys[:300], table.fresh_rows(keys[:300], generator))
                case 1:
                    erase(store, keys[:40])
                case _:
                    self.check(store, keys)
        self.check(store, everything)
        hps_torch.refresh(store.path)
        self.check(store, everything)
        store.close()

    def test_random_sequences_agree_with_the_oracle(self):
        for seed, (share, dim) in enumerate([(0.0, 4), (0.02, 32), (0.3, 33), (1.0, 16), (3.0, 2)]):
            for keys in (torch.arange(ROWS), random_keys(ROWS)):
                with self.subTest(gpucacheper=share, dim=dim):
                    self.run_a_sequence(Table(keys, dim, default=-2.0), share, seed)

    def test_updated_rows_are_seen_by_the_next_lookup_and_erased_ones_are_gone(self):
        table = Table(random_keys(ROWS), 16)
        store = self.make_store(table, gpucacheper=0.2)
        generator = seeded(5)
        some = table.keys[: ROWS // 2]
        for _ in range(5):
            self.check(store, some)
            update(store, some, table.fresh_rows(some, generator))
            self.check(store, some)
        erase(store, some[: ROWS // 4])
        self.check(store, table.keys)
        update(store, some, table.fresh_rows(some, generator))
        self.check(store, table.keys)

    def test_rows_are_seen_that_were_updated_after_a_fork(self):
        # A child must not keep pages of host memory that the GPU reads: ours would move.
        table = Table(random_keys(ROWS), 16)
        store = self.make_store(table, gpucacheper=0.05)
        generator = seeded(11)
        self.check(store, table.keys)
        go_on, leave = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(leave)
            os.read(go_on, 1)
            os._exit(0)
        os.close(go_on)
        try:
            update(store, table.keys, table.fresh_rows(table.keys, generator))
            self.check(store, table.keys)
        finally:
            os.close(leave)
            os.waitpid(child, 0)
        self.check(store, table.keys)

    def test_readers_see_whole_rows_in_order_while_all_are_overwritten(self):
        dim, threads = 64, 8
        table = Table(random_keys(ROWS), dim)
        store = self.make_store(table, gpucacheper=0.3)
        store.open()
        keys = table.keys

        def rows_of(version: int) -> torch.Tensor:
            rows = table.fresh_rows(keys, seeded(version))
            rows[:, 1] = torch.tensor([version], dtype=torch.int32).view(torch.float32)
            rows[:, -1] = checksum(rows).view(torch.float32)
            return rows

        hps_torch.update(store.path, "model", 0, keys, rows_of(0))
        complete = [0]
        problems: list[str] = []
        stopped = threading.Event()

        def read(seed: int) -> None:
            generator = seeded(seed)
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                while not stopped.is_set() and not problems:
                    at = torch.randint(len(keys), (BATCH,), generator=generator)
                    asked = keys[at].to(DEVICE)
                    oldest = complete[0]
                    found = bits(store.lookup(asked)).cpu()
                    if not torch.equal(found[:, 0], asked.cpu().to(torch.int32)):
                        problems.append("a row of another key")
                    if not torch.equal(found[:, -1], checksum(found.view(torch.float32))):
                        problems.append("a row put together from two")
                    if int(found[:, 1].min()) < oldest:
                        problems.append(f"a row older than version {oldest}")

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(threads)]
        for reader in readers:
            reader.start()
        versions = size(60, 4)
        try:
            for version in range(1, versions + 1):
                hps_torch.update(store.path, "model", 0, keys, rows_of(version))
                complete[0] = version
        finally:
            stopped.set()
            for reader in readers:
                reader.join()
        assert not problems, problems
        table.update(keys, rows_of(versions))
        self.check(store, keys)


@each_arrangement(tiers=("host and ssd",))
class ReadOnly:
    def test_a_refused_update_takes_nothing_out_of_service(self):
        table = Table(random_keys(ROWS), 16)
        store = self.make_store(table, gpucacheper=0.2)
        self.check(store, table.keys)
        hps_torch.close(store.path)
        config = json.loads(Path(store.path).read_text())
        config["persistent_db"]["read_only"] = True
        Path(store.path).write_text(json.dumps(config))
        self.check(store, table.keys)
        rows = torch.zeros(10, 16)
        for change in (
            lambda: hps_torch.update(store.path, "model", 0, table.keys[:10], rows),
            lambda: hps_torch.erase(store.path, "model", 0, table.keys[:10]),
        ):
            assert "read_only" in message_of(change, hps_torch.HpsError)
            self.check(store, table.keys)


@each_arrangement(caches=("static", "uvm", "dynamic"), tiers=("host",))
class Replaying:
    @needs_allocator
    def test_a_graph_sees_what_was_updated_since_it_was_captured(self):
        table = Table(torch.arange(ROWS), 32)
        store = self.make_store(table, gpucacheper=0.1)
        generator = seeded(6)
        keys = torch.zeros(BATCH, dtype=torch.int64, device=DEVICE)
        store.lookup(keys)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rows = store.lookup(keys)
        for _ in range(size(10, 3)):
            changed = table.keys[torch.randperm(ROWS, generator=generator)[: ROWS // 3]]
            update(store, changed, table.fresh_rows(changed, generator))
            erase(store, changed[:20])
            asked = table.keys[torch.randint(ROWS, (BATCH,), generator=generator)]
            keys.copy_(asked)
            graph.replay()
            torch.cuda.synchronize()
            expected = table.expected(keys)
            assert torch.equal(bits(rows), bits(expected)), "not the rows of now"
        del graph
