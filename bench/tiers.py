"""A table ten times the host memory that it gets, and power-law keys: hits and latencies.

The rows of a lookup come from host memory or from RocksDB; those found below are promoted, others
evicted. The pages of the database are dropped from the page cache all the time, so that reads go
to the disk, as they would with a table far larger than memory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from cpu import power_law
from load import forget

import hps_torch


def drop_pages(folder: Path, stop: threading.Event) -> None:
    """Drops the table files' pages again and again."""
    while not stop.wait(0.05):
        forget(folder.glob("*.sst"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.1, help="of the rows in host memory")
    parser.add_argument("--keys", type=int, nargs="+", default=[4096, 65536])
    parser.add_argument("--policy", default="evict_oldest")
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault("HPS_LOG", "warn")
    rows, dim = arguments.rows, arguments.dim
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        home = Path(name)
        hps_torch.save_table(home / "table", torch.arange(rows), torch.randn(rows, dim))
        config = {
            "supportlonglong": True,
            "volatile_db": {
                "type": "parallel_hash_map",
                "num_partitions": 16,
                "overflow_margin": int(rows * arguments.share / 16),
                "overflow_policy": arguments.policy,
                "cache_missed_embeddings": True,
            },
            "persistent_db": {"type": "rocks_db", "path": "rocksdb"},
            "models": [
                {
                    "model": "m",
                    "sparse_files": ["table"],
                    "embedding_vecsize_per_table": [dim],
                    "maxnum_catfeature_query_per_table_per_sample": [1],
                    "default_value_for_each_table": [0.0],
                    "deployed_device_list": [0],
                }
            ],
        }
        path = home / "ps.json"
        path.write_text(json.dumps(config))
        hps_torch.open(str(path))
        stop = threading.Event()
        threading.Thread(target=drop_pages, args=(home / "rocksdb", stop), daemon=True).start()
        rng = np.random.default_rng(7)
        shuffle = rng.permutation(rows)
        print(
            f"{rows:,} rows of dim {dim}, {arguments.share:.0%} in host memory, "
            f"{arguments.policy}, alpha 1.05"
        )
        for size in arguments.keys:
            # The first third lets the tiers settle.
            times: list[float] = []
            before: dict[str, int] = {}
            began = time.monotonic()
            while (passed := time.monotonic() - began) < arguments.seconds * 1.5:
                keys = torch.from_numpy(shuffle[power_law(rows, 1.05, size, rng)])
                start = time.perf_counter()
                torch.ops.hps.lookup(keys, str(path), "m", 0, dim)
                taken = time.perf_counter() - start
                if passed < arguments.seconds * 0.5:
                    before = hps_torch.stats(str(path))["models"]["m"]["tables"][0]
                else:
                    times.append(taken)
            after = hps_torch.stats(str(path))["models"]["m"]["tables"][0]
            asked = after["keys"] - before["keys"]
            host = (after["host_hits"] - before["host_hits"]) / asked
            p50, p99, p999 = np.percentile(np.array(times) * 1e3, [50, 99, 99.9])
            print(
                f"  {size:6,} keys a batch: {size * len(times) / sum(times) / 1e6:6.2f} M rows/s, "
                f"host {host:.1%}, SSD {1 - host:.1%}; "
                f"ms per batch p50 {p50:.2f}, p99 {p99:.2f}, p99.9 {p999:.2f}; "
                f"host memory {after['host']['rows']:,} rows, "
                f"{after['host']['bytes'] / 1e6:.0f} MB",
                flush=True,
            )
        stop.set()
        hps_torch.close(str(path))


if __name__ == "__main__":
    main()
