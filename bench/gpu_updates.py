"""Lookups while another thread overwrites a million rows per second."""

from __future__ import annotations

import statistics
import threading
import time

import gpu_workload as workload
import torch
from gpu_hits import Bench, cached_store
from gpu_measure import checked, queued, spread
from gpu_store import MODEL, Store, Table

#: Keys of a lookup, rows of an update, and rows per second that are asked for.
SIZE, BATCH, RATE = 1_048_576, 65_536, 1_000_000
SECONDS = 3.0
COLUMNS = (
    *("system", "drawn", "dim", "rows", "keys", "alone_us", "alone_spread", "t_us", "spread"),
    *("p99_us", "rows_per_s", "slower", "check"),
)


class Writer:
    """Overwrites rows with what they are, so that lookups can be checked, at a steady rate."""

    def __init__(self, store: Store, table: Table, rows: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self._store = store
        self._batches = []
        for _ in range(8):
            at = torch.randperm(rows, generator=generator, dtype=torch.int32)[:BATCH].long()
            keys = table.keys[at.to(table.keys.device)].cpu()
            self._batches.append((keys, workload.rows_of(keys, table.dim)))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.written = 0
        self.seconds = 0.0

    def _run(self) -> None:
        started = time.perf_counter()
        while not self._stopped.is_set():
            keys, rows = self._batches[self.written // BATCH % len(self._batches)]
            self._store.hps_torch.update(self._store.path, MODEL, 0, keys, rows)
            self.written += BATCH
            self.seconds = time.perf_counter() - started
            # Not faster than what is asked for.
            time.sleep(max(0.0, self.written / RATE - self.seconds))

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def lookups_us(store: Store, batches: list[torch.Tensor], seconds: float) -> list[float]:
    """Times on the GPU of calls that are enqueued back to back."""
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        times += queued(store.lookup, batches, 64)
    return times


def updates(bench: Bench, table: Table) -> None:
    """Hits of `static`, and Zipf over all rows with a tenth of them in a `dynamic` cache."""
    bench.report.begin("updates", *COLUMNS)
    for kind, drawn in (("static", "uniform"), ("dynamic", "Zipf")):
        if kind == "static":
            rows = table.cached
            store = bench.stores.open("static", 1.0, table.files(rows))
            ranks = bench.positions(drawn, table.dim, SIZE, rows)
        else:
            rows = table.rows
            store = cached_store(bench, table, kind)
            names = [workload.stream(table.dim, workload.MIXED, SIZE, step) for step in range(16)]
            draws = (workload.uniforms(name, SIZE, bench.device) for name in names)
            ranks = [table.zipf.ranks(draw) for draw in draws]
        batches = [table.keys[part] for part in ranks]
        lookups_us(store, batches, 0.5)
        alone = lookups_us(store, batches, SECONDS / 3)
        writer = Writer(store, table, rows)
        with writer:
            times = lookups_us(store, batches, SECONDS)
            wrong = sum(checked(store.lookup, batch, table.dim) for batch in batches[:4])
        after = lookups_us(store, batches, SECONDS / 3)
        t_us, alone_us = statistics.median(times), min(map(statistics.median, (alone, after)))
        bench.report.row(
            system=f"{kind}, updated",
            drawn=drawn,
            dim=table.dim,
            rows=rows,
            keys=SIZE,
            alone_us=alone_us,
            alone_spread=spread(alone + after),
            t_us=t_us,
            spread=spread(times),
            p99_us=sorted(times)[int(len(times) * 0.99)],
            rows_per_s=writer.written / max(writer.seconds, 1e-9),
            slower=t_us / alone_us - 1,
            wrong=wrong,
        )
