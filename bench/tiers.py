"""A table ten times the host memory that it gets, and power-law keys: hits and latencies.

The rows of a lookup come from host memory or from RocksDB; those found below are promoted, others
evicted. The pages of the database are dropped from the page cache all the time, so that reads go
to the disk, as they would with a table far larger than memory. Then the same while this process
does other things: writes rows to the table, or opens a store whose model files have to be loaded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cpu import power_law
from deployment import MODEL, write_config
from load import forget, write_model_files

import hps_torch


class Beside(threading.Thread):
    """Does something over and over, from the beginning of a block to its end."""

    def __init__(self, what: str, work: Callable[[], object]) -> None:
        super().__init__()
        self.what, self.work = what, work
        #: How often it was done.
        self.rounds = 0
        self._stop_it = threading.Event()
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stop_it.is_set():
                self.work()
                self.rounds += 1
        except Exception as error:
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Beside:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_it.set()
        self.join()
        self.check()


@dataclass
class Store:
    """The table that is looked up."""

    config: str
    rows: int
    dim: int
    rng: np.random.Generator
    #: Rank by popularity to key.
    shuffle: np.ndarray

    def counts(self) -> dict[str, int]:
        return hps_torch.stats(self.config)["models"][MODEL]["tables"][0]

    def measure(
        self, size: int, seconds: float, settle: float, beside: Beside | None = None
    ) -> None:
        """Looks keys up for some seconds, after others in which the tiers settle."""
        times: list[float] = []
        before: dict[str, int] = {}
        rounds = 0
        began = time.monotonic()
        while (passed := time.monotonic() - began) < settle + seconds or not times:
            keys = torch.from_numpy(self.shuffle[power_law(self.rows, 1.05, size, self.rng)])
            start = time.perf_counter()
            torch.ops.hps.lookup(keys, self.config, MODEL, 0, self.dim)
            taken = time.perf_counter() - start
            if passed < settle or not before:
                before, rounds = self.counts(), beside.rounds if beside else 0
            else:
                times.append(taken)
        after = self.counts()
        host = (after["host_hits"] - before["host_hits"]) / (after["keys"] - before["keys"])
        p50, p99, p999 = np.percentile(np.array(times) * 1e3, [50, 99, 99.9])
        what = ""
        if beside:
            beside.check()
            rate = (beside.rounds - rounds) / max(passed - settle, 1e-9)
            what = f" beside {beside.what} ({rate:.2f} a second)"
        print(
            f"  {size:6,} keys a batch{what}: {size * len(times) / sum(times) / 1e6:5.2f} M rows/s,"
            f" host {host:.1%}, SSD {1 - host:.1%}; ms per batch p50 {p50:.2f}, p99 {p99:.2f}, "
            f"p99.9 {p999:.2f}, longest {max(times) * 1e3:.2f}; "
            f"host memory {after['host']['rows']:,} rows, {after['host']['bytes'] / 1e6:.0f} MB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.1, help="of the rows in host memory")
    parser.add_argument("--keys", type=int, nargs="+", default=[4096, 65536])
    parser.add_argument("--policy", default="evict_oldest")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--written", type=int, default=100_000, help="rows a second")
    arguments = parser.parse_args()
    os.environ.setdefault("HPS_LOG", "warn")
    rows, dim, seconds = arguments.rows, arguments.dim, arguments.seconds
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        home = Path(name)
        hps_torch.save_table(home / "table", torch.arange(rows), torch.randn(rows, dim))
        config = write_config(
            home / "ps.json",
            "table",
            dim,
            volatile_db={
                "type": "parallel_hash_map",
                "num_partitions": 16,
                "overflow_margin": int(rows * arguments.share / 16),
                "overflow_policy": arguments.policy,
                "cache_missed_embeddings": True,
            },
            persistent_db={"type": "rocks_db", "path": "rocksdb"},
        )
        hps_torch.open(config)
        rng = np.random.default_rng(7)
        store = Store(config, rows, dim, rng, rng.permutation(rows))

        def drop_pages() -> None:
            time.sleep(0.05)
            forget((home / "rocksdb").glob("*.sst"))

        batch = min(arguments.written // 10, rows)
        turn = np.random.default_rng(8)

        def write() -> None:
            start = time.monotonic()
            keys = torch.from_numpy(turn.integers(0, rows, batch))
            hps_torch.update(config, MODEL, 0, keys, torch.zeros(batch, dim))
            time.sleep(max(0.1 - (time.monotonic() - start), 0))

        write_model_files(home / "other", rows, dim, hashed=True)
        database = {"type": "rocks_db", "path": "other-rocksdb"}
        other = write_config(
            home / "other.json",
            "other",
            dim,
            volatile_db={"type": "parallel_hash_map", "initial_cache_rate": 0.01},
            persistent_db=database,
        )

        def load() -> None:
            forget((home / "other").iterdir())
            hps_torch.open(other)
            hps_torch.close(other)
            shutil.rmtree(home / "other-rocksdb")

        print(
            f"{rows:,} rows of dim {dim}, {arguments.share:.0%} in host memory, "
            f"{arguments.policy}, alpha 1.05"
        )
        with Beside("", drop_pages):
            for size in arguments.keys:
                store.measure(size, seconds, settle=seconds / 2)
            size = arguments.keys[0]
            with Beside(f"writes of {batch:,} rows", write) as writes:
                store.measure(size, seconds, settle=2, beside=writes)
            with Beside(f"loads of {rows:,} rows", load) as loads:
                store.measure(size, seconds, settle=2, beside=loads)
            store.measure(size, seconds, settle=2)
        hps_torch.close(config)


if __name__ == "__main__":
    main()
