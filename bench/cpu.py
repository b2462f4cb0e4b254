"""Lookups of CPU tensors, each against torch.nn.functional.embedding on the same rows.

Baseline and lookup alternate within one run, on fresh batches of keys, so that a noisy machine
disturbs both alike; the ratio is that of the medians. `F.embedding` hashes nothing: its keys are
positions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import deployment
import numpy as np
import torch
import torch.nn.functional as functional

import hps_torch

BATCHES = 16


def power_law(rows: int, alpha: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """Ranks 0..rows-1 with density ~ rank^-alpha.

    By inverse transform: floor((x (N^g - 1) + 1)^(1/g)), g = 1 - alpha.
    """
    gamma = 1.0 - alpha
    x = rng.random(size)
    ranks = np.floor((x * (float(rows) ** gamma - 1.0) + 1.0) ** (1.0 / gamma)).astype(np.int64) - 1
    return np.clip(ranks, 0, rows - 1)


def batches(
    kind: str, rows: int, size: int, rng: np.random.Generator, shuffle: np.ndarray
) -> list[torch.Tensor]:
    if kind == "uniform":
        return [torch.from_numpy(rng.integers(0, rows, size)) for _ in range(BATCHES)]
    return [torch.from_numpy(shuffle[power_law(rows, 1.05, size, rng)]) for _ in range(BATCHES)]


def write_config(
    home: Path, name: str, dim: int, rate: float | None, *, shared: bool = False
) -> str:
    """A configuration over the table in home/table<dim>.

    rate: share of rows in host memory, None for host memory alone. shared: with other processes.
    """
    sections: dict[str, dict[str, object]] = {
        "volatile_db": {
            "type": "multi_process_hash_map" if shared else "parallel_hash_map",
            "initial_cache_rate": 1.0 if rate is None else rate,
            "shared_memory_name": f"hps-bench-{os.getpid()}",
        }
    }
    if rate is not None:
        sections["persistent_db"] = {"type": "rocks_db", "path": f"rocksdb{dim}"}
    return deployment.write_config(home / f"{name}.json", f"table{dim}", dim, **sections)


class Timer:
    """Medians of two functions that take turns."""

    def __init__(self, repeat: int) -> None:
        self.repeat = repeat

    def compare(self, keys: list, *functions) -> list[np.ndarray]:  # noqa: ANN002
        times: list[list[float]] = [[] for _ in functions]
        for i in range(self.repeat + 4):
            batch = keys[i % len(keys)]
            for measured, function in zip(times, functions, strict=True):
                start = time.perf_counter()
                function(batch)
                if i >= 4:
                    measured.append(time.perf_counter() - start)
        return [np.array(measured) for measured in times]


def spread(times: np.ndarray) -> str:
    low, high = np.percentile(times, [10, 90])
    return f"{np.median(times) * 1e6:9.1f} us ({low * 1e6:.0f} to {high * 1e6:.0f})"


#: Where rows are, and what keys are.
HELD = {
    "all": "all in host memory, keys 0 to rows - 1",
    "hashed": "all in host memory, 63-bit keys that lie anywhere",
    "shared": "all in memory that processes share, 63-bit keys that lie anywhere",
    "half": "half in host memory, half on SSD, keys 0 to rows - 1",
}


def bench_lookups(
    home: Path, rows: int, repeat: int, dims: list[int], helds: list[str]
) -> list[dict[str, object]]:
    results = []
    rng = np.random.default_rng(31337)
    shuffle = rng.permutation(rows)
    threads = torch.get_num_threads()
    print(f"\nLookups, {rows:,} rows; medians of {repeat} calls (10th to 90th percentile)")
    print("A ratio above 1 means that hps is faster")
    print("".join(f"  {name}: {HELD[name]}\n" for name in helds))
    print(
        f"{'dim':>4} {'keys':>6} {'keys are':9} {'rows':>7} {'threads':>7}  {'hps::lookup':28}"
        f" {'F.embedding':28} {'ratio':>6}"
    )
    for dim in dims:
        plain = torch.randn(rows, dim)
        for held in helds:
            # An odd factor: a different key for each position.
            factor = 1 if held in ("all", "half") else 0x5851F42D4C957F2D
            mask = (1 << 63) - 1
            table_keys = torch.arange(rows) * factor & mask
            hps_torch.save_table(home / f"table{dim}", table_keys, plain)
            del table_keys
            path = write_config(
                home,
                f"{dim}-{held}",
                dim,
                0.5 if held == "half" else None,
                shared=held == "shared",
            )
            hps_torch.open(path)
            for size in (1024, 65536):
                for kind in ("uniform", "alpha1.05"):
                    keys = batches(kind, rows, size, rng, shuffle)

                    pairs = [(batch * factor & mask, batch) for batch in keys]

                    def lookup(
                        pair: tuple[torch.Tensor, torch.Tensor], path: str = path, dim: int = dim
                    ) -> torch.Tensor:
                        return torch.ops.hps.lookup(pair[0], path, "bench", 0, dim)

                    def embedding(
                        pair: tuple[torch.Tensor, torch.Tensor], plain: torch.Tensor = plain
                    ) -> torch.Tensor:
                        return functional.embedding(pair[1], plain)

                    assert torch.equal(lookup(pairs[0]), embedding(pairs[0]))
                    calls = repeat if held != "half" or size == 1024 else max(repeat // 4, 10)
                    for num_threads in sorted({1, threads}):
                        torch.set_num_threads(num_threads)
                        ours, theirs = Timer(calls).compare(pairs, lookup, embedding)
                        ratio = np.median(theirs) / np.median(ours)
                        print(
                            f"{dim:4} {size:6} {kind:9} {held:>7} {num_threads:7}"
                            f"  {spread(ours):28} {spread(theirs):28} {ratio:6.3f}",
                            flush=True,
                        )
                        results.append(
                            {
                                "dim": dim,
                                "keys": size,
                                "kind": kind,
                                "held": held,
                                "threads": num_threads,
                                "lookup_us": float(np.median(ours) * 1e6),
                                "embedding_us": float(np.median(theirs) * 1e6),
                                "ratio": float(ratio),
                            }
                        )
            hps_torch.close(path)
    return results


class Plain(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        return functional.embedding(keys, self.weight)


def bench_overhead(home: Path, repeat: int) -> dict[str, float]:
    """One key through TorchScript: what a call costs."""
    weight = torch.randn(1000, 16)
    hps_torch.save_table(home / "table16", torch.arange(1000), weight)
    path = write_config(home, "overhead", 16, None)
    layer = torch.jit.script(hps_torch.LookupLayer(path, "bench", 0, 16))
    plain = torch.jit.script(Plain(weight))
    key = torch.tensor([7])
    calls = 2000
    times: dict[str, list[float]] = {"lookup": [], "embedding": []}
    with torch.inference_mode():
        for i in range(repeat // 4 + 3):
            for name, module in (("lookup", layer), ("embedding", plain)):
                start = time.perf_counter()
                for _ in range(calls):
                    module(key)
                if i >= 3:
                    times[name].append((time.perf_counter() - start) / calls)
    ours, theirs = (np.array(times[name]) for name in ("lookup", "embedding"))
    print("\nOne key through TorchScript, per call (medians of rounds of 2,000 calls)")
    print(
        f"  hps.lookup  {np.median(ours) * 1e6:.2f} us"
        f" ({ours.min() * 1e6:.2f} to {ours.max() * 1e6:.2f})"
    )
    print(
        f"  F.embedding {np.median(theirs) * 1e6:.2f} us"
        f" ({theirs.min() * 1e6:.2f} to {theirs.max() * 1e6:.2f})"
    )
    print(f"  ratio       {np.median(theirs) / np.median(ours):.3f}")
    hps_torch.close(path)
    return {
        "lookup_us": float(np.median(ours) * 1e6),
        "embedding_us": float(np.median(theirs) * 1e6),
    }


OPEN = """
import json, resource, sys, time
import hps_torch

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

before = memory("VmRSS")
start = time.perf_counter()
hps_torch.open(sys.argv[1])
seconds = time.perf_counter() - start
table = hps_torch.stats(sys.argv[1])["models"]["bench"]["tables"][0]
print(json.dumps({"seconds": seconds, "peak": memory("VmHWM") - before,
                  "rest": memory("VmRSS") - before, "host": table.get("host"),
                  "ssd": table.get("ssd")}))
"""


def bench_open(home: Path) -> list[dict[str, object]]:
    """Opening one million rows of dim 32 from model files, each in a process of its own."""
    rows, dim = 1_000_000, 32
    hps_torch.save_table(home / f"table{dim}", torch.arange(rows), torch.randn(rows, dim))
    results = []
    print(
        f"\nOpening {rows:,} rows of dim {dim} ({rows * (dim * 4 + 8) / 1e6:.0f} MB of model files)"
    )
    for name, rate in (
        ("host memory alone", None),
        ("RocksDB and half in host memory, first start", 0.5),
        ("RocksDB and half in host memory, second start", 0.5),
    ):
        if name.endswith("first start"):
            subprocess.run(["rm", "-rf", str(home / f"rocksdb{dim}")], check=True)
        path = write_config(home, "open", dim, rate)
        output = subprocess.run(
            [sys.executable, "-c", OPEN, path],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "HPS_LOG": "warn"},
        ).stdout
        result = json.loads(output.splitlines()[-1])
        beyond = result["host"]["bytes"] / result["host"]["rows"] - dim * 4
        print(
            f"  {name:46} {result['seconds']:6.2f} s, peak memory +{result['peak'] / 1e6:.0f} MB,"
            f" at rest +{result['rest'] / 1e6:.0f} MB; host memory {beyond:.1f} bytes per row"
            f" beyond the row (key included)"
        )
        results.append({"name": name, **result})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=60)
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--held", nargs="+", choices=HELD, default=["all", "half"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("HPS_LOG", "warn")
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout
    print(
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}; torch {torch.__version__};"
        f" commit {commit.strip()}"
    )
    with tempfile.TemporaryDirectory() as home:
        opening = bench_open(Path(home))
        overhead = bench_overhead(Path(home), arguments.repeat)
        lookups = bench_lookups(
            Path(home), arguments.rows, arguments.repeat, arguments.dims, arguments.held
        )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"open": opening, "overhead": overhead, "lookups": lookups}, indent=1)
        )


if __name__ == "__main__":
    main()
