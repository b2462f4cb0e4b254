"""The insertion of missed rows by itself: no call of Python's, so a test of hps-gpu measures it."""

from __future__ import annotations

import os
import subprocess

import torch
from gpu_hits import Bench
from gpu_store import ROOT

#: Put there by scripts/lib/gpu-tests.sh; runs where there is a GPU and nothing to build with.
PROGRAM = ROOT / "build" / "gpu-tests" / "hps_gpu"
TEST = "gpu_bench::insert_benchmark"
COLUMNS = (
    *("system", "dim", "rows", "keys", "t_us", "spread", "offered", "added", "offered_mb"),
    *("added_mb", "check"),
)
LIMIT_S = 300
NUMBERS = {"dim": int, "rows": int, "keys": int}


def measured(output: str) -> list[dict[str, float]]:
    """The numbers of lines that contain something like `insert: dim=128 t_us=61.5`."""
    lines = [line.partition("insert: ")[2].split() for line in output.splitlines()]
    pairs = [[pair.partition("=") for pair in line] for line in lines if line]
    return [{name: NUMBERS.get(name, float)(value) for name, _, value in line} for line in pairs]


def insert(bench: Bench) -> None:
    """The missed rows of 1,048,576 keys, duplicates among them, into a warm cache of a tenth."""
    if not PROGRAM.exists():
        print(f"  left out: there is no {PROGRAM.relative_to(ROOT)} (scripts/lib/gpu-tests.sh)")
        return
    bench.stores.close()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    run = subprocess.run(
        [PROGRAM, "--ignored", "--exact", TEST, "--nocapture", "--test-threads=1"],
        env={**os.environ, "HPS_BENCHMARK": "0" if bench.shrink > 1 else "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    rows = measured(run.stdout)
    if run.returncode != 0 or not rows:
        why = run.stdout.strip() or "it printed nothing"
        raise RuntimeError(f"{TEST} of {PROGRAM} ended with {run.returncode}:\n{why}")
    bench.report.begin("insert", *COLUMNS)
    for values in rows:
        # The program ends with an error if a row that it finds in the cache is not its key's.
        bench.report.row(system="into dynamic, 10 %", wrong=0, **values)
