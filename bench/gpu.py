"""Lookups of CUDA tensors, each against torch.nn.functional.embedding on the same rows.

What is measured, by name (see --rows):

  hit       the C hottest rows, all in GPU memory (static): 1,024 to 1,048,576 keys
  hashed    the same with keys of 60 bits
  fp8       the same with fp8_quant: rows of 8-bit floats
  host      what a call costs the host, eager and scripted
  sizes     tables of 1, 10 and 50 million rows
  warm      the share of the C hottest rows that a dynamic cache of C slots holds after opening
  mixed     Zipf over all rows, a tenth in the cache, every row exact: dynamic and uvm
  ssd       the same, with a tenth of 6 million rows on SSD alone
  nve       nv-embedding-cache's power law
  updates   the same while another thread overwrites a million rows per second
  latency   2,000 keys, with the host's wall time
  tables    26 layers one after the other
  insert    missed rows into a dynamic cache, by themselves; needs build/gpu-tests/hps_gpu

Every section but `host` compares all floats of its answers with what the rows should be; `insert`
those of a sample of the rows that it finds in the cache after. Times are medians: `t_us` of calls
enqueued back to back, each between two events (mixed, nve, latency, insert: each queued behind
other work, the host waiting after each); `g1_us` of graphs of one call; `g16_us` of a call in a
graph of 16. `spread`, behind a time: how far the medians of five groups of its calls, one after the
other, lie apart, in percent. `x F.emb` above 1 means faster. `of bound` compares with a copy that
moves key, probe and row, at the copy bandwidth of this run. `after_s`: how long the store was open
before the first timed step; `extra`: steps until its cache had settled.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gpu_hits
import gpu_insert
import gpu_misses
import gpu_updates
import gpu_workload as workload
import torch
from gpu_measure import Report, copy_bandwidth
from gpu_store import ROOT, Stores, Table, load_library

#: In the order of the size of their tables: model files only grow while a dim is measured.
OF_A_DIM: dict[str, Callable[[gpu_hits.Bench, Table], None]] = {
    "hit": gpu_hits.hits,
    "hashed": gpu_hits.hashed_hits,
    "fp8": gpu_hits.fp8_hits,
    "host": gpu_hits.host,
    "sizes": gpu_hits.sizes,
    "warm": gpu_hits.warm,
    "mixed": gpu_misses.mixed,
    "nve": gpu_misses.nve,
    "updates": gpu_updates.updates,
}
OF_ITS_OWN: dict[str, Callable[[gpu_hits.Bench], None]] = {
    "ssd": gpu_misses.ssd,
    "latency": gpu_misses.latency,
    "tables": gpu_misses.many_tables,
    "insert": gpu_insert.insert,
}
NEEDED_DIM = {"sizes": 32, "nve": 128}
SECTIONS = (*OF_A_DIM, *OF_ITS_OWN)
SMALL = 100


def names(text: str) -> list[str]:
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    for name in chosen:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SECTIONS)}")
    return chosen


def dims(text: str) -> list[int]:
    try:
        chosen = [int(dim) for dim in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers") from error
    for dim in chosen:
        if dim not in workload.ROWS:
            raise argparse.ArgumentTypeError(f"{dim} is none of {sorted(workload.ROWS)}")
    return chosen


def output_of(*command: str) -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        return run.stdout.strip().splitlines()[0] if run.stdout.strip() else "?"
    return "?"


def machine(version: str, path: str) -> dict[str, str]:
    driver = output_of(
        "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"
    )
    memory = torch.cuda.get_device_properties(0).total_memory
    return {
        "gpu": torch.cuda.get_device_name(0),
        "memory": f"{memory / 2**30:.0f} GiB",
        "driver": driver,
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "cpus": str(os.cpu_count()),
        "platform": f"Linux {platform.release()}, Python {platform.python_version()}",
        "hps_torch": version,
        "library": Path(path).name,
        "commit": output_of("git", "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
    }


def check_generator(devices: list[str]) -> None:
    """Ends the program if the keys or rows are not those of the reference."""
    for device in devices:
        started = time.perf_counter()
        problems = workload.check(torch.device(device))
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            sys.exit(f"the generator differs from the reference on {device}:\n{lines}")
        seconds = time.perf_counter() - started
        print(f"generator: as the reference, on {device} ({seconds:.1f} s)", flush=True)


class Runner:
    """Runs sections; a failure of one is printed and the next one starts."""

    def __init__(self, bench: gpu_hits.Bench) -> None:
        self.bench = bench
        self.failed: list[str] = []

    def run(self, title: str, section: Callable[[], None]) -> None:
        print(f"\n[{title}]", flush=True)
        started = time.perf_counter()
        try:
            section()
        except Exception as error:
            self.failed.append(title)
            traceback.print_exc()
            print(f"  FAILED: {type(error).__name__}: {error}", flush=True)
            with contextlib.suppress(Exception):
                self.bench.stores.close()
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()
        print(f"  {time.perf_counter() - started:.1f} s", flush=True)

    def run_dim(self, dim: int, sections: list[str]) -> None:
        bench = self.bench
        tables: list[Table] = []
        rows = workload.ROWS[dim] // bench.shrink

        def make() -> None:
            tables.append(Table(f"dim{dim}", rows, dim, bench.home, bench.device))

        self.run(f"keys of {rows:,} ranks, dim {dim}", make)
        try:
            for name in sections if tables else []:
                self.run(f"{name}, dim {dim}", partial(OF_A_DIM[name], bench, tables[0]))
        finally:
            with contextlib.suppress(Exception):
                bench.stores.close()
            for table in tables:
                table.remove()
            bench.baselines.clear()
            tables.clear()
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()

    def run_all(self, chosen: list[str], chosen_dims: list[int]) -> None:
        for name in chosen:
            if NEEDED_DIM.get(name, chosen_dims[0]) not in chosen_dims:
                print(f"\n[{name}] left out: it needs dim {NEEDED_DIM[name]}")
        for dim in chosen_dims:
            sections = [name for name in OF_A_DIM if name in chosen]
            sections = [name for name in sections if NEEDED_DIM.get(name, dim) == dim]
            if sections:
                self.run_dim(dim, sections)
        for name, section in OF_ITS_OWN.items():
            if name in chosen:
                self.run(name, partial(section, self.bench))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=names, default=list(SECTIONS), metavar="NAME,NAME")
    parser.add_argument("--dims", type=dims, default=list(workload.ROWS), metavar="128,32")
    parser.add_argument("--small", action="store_true", help=f"tables of 1/{SMALL} of the rows")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also writes all rows there")
    parser.add_argument("--dir", type=Path, help="for model files, up to 12 GB; removed at the end")
    parser.add_argument(
        "--check-generator", action="store_true", help="only checks keys and rows; needs no GPU"
    )
    arguments = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if arguments.check_generator:
        check_generator(["cpu", "cuda"] if has_gpu else ["cpu"])
        return
    if not has_gpu:
        sys.exit("no GPU that torch can use; --check-generator works without one")
    os.environ.setdefault("HPS_LOG", "warn")
    # The model files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    started = time.perf_counter()
    hps_torch = load_library()
    about = machine(hps_torch.version(), hps_torch.library_path())
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    check_generator(["cuda"])
    device = torch.device("cuda", torch.cuda.current_device())
    bandwidth, bandwidth_spread = copy_bandwidth(device)
    torch.cuda.empty_cache()
    about["copy_bytes_per_s"] = f"{bandwidth:.4g}"
    print(
        f"copy within GPU memory: {bandwidth / 1e12:.3f} TB/s, read and written"
        f" (spread {bandwidth_spread:.1f} %)"
    )

    report = Report()
    with tempfile.TemporaryDirectory(prefix="hps-bench-", dir=arguments.dir) as home:
        stores = Stores(hps_torch, Path(home))
        bench = gpu_hits.Bench(Path(home), device, report, stores, bandwidth)
        bench.shrink = SMALL if arguments.small else 1
        runner = Runner(bench)
        try:
            with torch.inference_mode():
                runner.run_all(arguments.rows, arguments.dims)
        finally:
            with contextlib.suppress(Exception):
                stores.close()
            if arguments.csv:
                report.write(arguments.csv, about)
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    if report.wrong:
        print(f"WRONG: {report.wrong:,} rows are not what they should be")
    if runner.failed:
        print(f"FAILED: {'; '.join(runner.failed)}")
    sys.exit(1 if report.wrong or runner.failed else 0)


if __name__ == "__main__":
    main()
