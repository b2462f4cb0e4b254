"""A table as large as the disk allows, as an operator meets it.

It is loaded; loaded again by processes that are killed on the way, until one comes to the end;
verified; opened and read twice; verified again after some rows were updated. Needs the bytes of its
rows three times on the disk. Rows are compared with the model files wherever they are read, and a
wrong one ends the run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deployment import MODEL, write_config
from load import copy, forget, write_model_files

#: Where the installation has the program.
HPS = Path(sys.executable).parent / "hps"

#: Opens the store, in a process of its own.
OPENER = """
import sys, time
from pathlib import Path

import numpy as np
import torch

import hps_torch

config, model, dim, files, number = sys.argv[1:]
start = time.perf_counter()
hps_torch.open(config)
print(f"opened in {time.perf_counter() - start:.3f} s")

keys = np.memmap(Path(files) / "key", dtype=np.int64, mode="r")
"""

#: Looks keys up in it.
READER = """
rows = np.memmap(Path(files) / "emb_vector", dtype=np.float32, mode="r").reshape(-1, int(dim))
rng = np.random.default_rng(time.time_ns())
times = []
for _ in range(int(number)):
    positions = np.sort(rng.integers(0, len(keys), 4096))
    asked, expected = torch.from_numpy(keys[positions]), torch.from_numpy(rows[positions])
    start = time.perf_counter()
    found = torch.ops.hps.lookup(asked, config, model, 0, int(dim))
    times.append(time.perf_counter() - start)
    assert torch.equal(found, expected), "wrong rows"
status = Path("/proc/self/status").read_text().splitlines()
memory = int(next(line for line in status if line.startswith("RssAnon")).split()[1])
p50, p99 = np.percentile(times, [50, 99]) * 1e3
print(
    f"{len(times)} lookups of 4,096 keys: p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
    f"{4.096 * len(times) / sum(times):.0f} k rows/s; {memory >> 10} MB, torch's included"
)
"""

#: Updates rows of it.
UPDATER = """
positions = np.random.default_rng(7).choice(len(keys), int(number), replace=False)
hps_torch.update(
    config, model, 0, torch.from_numpy(keys[positions]), torch.full((len(positions), int(dim)), 2.0)
)
print(f"{number} rows updated")
"""


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def bytes_of(folder: Path) -> int:
    """What the files below a folder take on the disk. A file with two names counts once."""
    sizes = {}
    # Unlike Path.rglob it goes on if a folder vanishes.
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                status = Path(directory, name).stat()
            except FileNotFoundError:
                continue
            sizes[status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


@dataclass
class Table:
    """Model files, a configuration that serves them, and its database."""

    home: Path
    rows: int
    dim: int

    def __post_init__(self) -> None:
        self.files, self.database = self.home / "table", self.home / "rocksdb"
        self.num_bytes = write_model_files(self.files, self.rows, self.dim, hashed=True)
        self.config = write_config(
            self.home / "ps.json",
            "table",
            self.dim,
            volatile_db={
                "type": "parallel_hash_map",
                "initial_cache_rate": 0.001,
                "memory_bytes": 512 << 20,
            },
            persistent_db={"type": "rocks_db", "path": "rocksdb"},
        )

    def load(self, *, until: float = math.inf) -> float | None:
        """Seconds of `hps load`; None if it was killed, as so many had passed."""
        forget(self.files.iterdir())
        log = self.home / "log"
        start, most = time.perf_counter(), 0
        with (
            log.open("wb") as output,
            subprocess.Popen([HPS, "load", self.config], stdout=output, stderr=output) as process,
        ):
            try:
                while process.poll() is None and time.perf_counter() - start < until:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(timeout=0.2)
                    most = max(most, bytes_of(self.database))
            finally:
                process.kill()
        taken = time.perf_counter() - start
        text = log.read_text(errors="replace")
        is_killed = process.returncode == -signal.SIGKILL
        if process.returncode != 0 and not is_killed:
            sys.exit(f"hps load failed:\n{text}")
        went_on = [line.rsplit("; ", 1)[-1] for line in text.splitlines() if "goes on" in line]
        rate = "" if is_killed else f", {self.rows / taken / 1e6:.2f} M rows/s"
        say(
            f"{'killed after' if is_killed else 'loaded in'} {taken:.1f} s{rate}; "
            f"at most {most / self.num_bytes:.2f} of its bytes on the disk"
            + "".join(f"; {line}" for line in went_on)
        )
        return None if is_killed else taken

    def verify(self, num_updated: int = 0) -> None:
        forget(self.database.glob("*.sst"))
        forget(self.files.iterdir())
        start = time.perf_counter()
        command = [HPS, "verify", self.config, "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        table = json.loads(done.stdout)["tables"][0]
        assert table["rows"] == self.rows, table
        found = table["files"]["differing"], table["files"]["missing"]
        assert found == (num_updated, 0), table
        say(
            f"verified in {time.perf_counter() - start:.1f} s: the rows are those of the files"
            + (f" but for the {num_updated:,} that were updated" if num_updated else "")
        )

    def _run(self, script: str, number: int) -> None:
        what = [self.config, MODEL, str(self.dim), str(self.files), str(number)]
        command = [sys.executable, "-c", OPENER + script, *what]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        say("; ".join(done.stdout.splitlines()))

    def update(self, num_updates: int) -> None:
        self._run(UPDATER, num_updates)

    def read(self, num_lookups: int) -> None:
        forget(self.database.glob("*.sst"))
        self._run(READER, num_lookups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--dir", default="/var/tmp", help="on the disk that is measured")
    parser.add_argument("--lookups", type=int, default=500)
    parser.add_argument("--updates", type=int, default=1_000, help="rows updated before the end")
    parser.add_argument(
        "--kills", type=float, nargs="*", default=[0.3, 0.6], help="shares of the time of a load"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("HPS_LOG", "info")
    with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
        home = Path(name)
        table = Table(home, arguments.rows, arguments.dim)
        copied = copy(table.files, home / "copy")
        shutil.rmtree(home / "copy")
        print(
            f"{table.rows:,} rows of dim {table.dim}, hashed keys, {table.num_bytes / 1e9:.1f} GB, "
            f"copied in {copied:.1f} s",
            flush=True,
        )
        whole = table.load() or math.inf
        say(
            f"that is {whole / copied:.2f} times the copy; at rest "
            f"{bytes_of(table.database) / table.num_bytes:.2f} of its bytes"
        )
        shutil.rmtree(table.database)
        kills = iter(arguments.kills)
        while table.load(until=whole * next(kills, math.inf)) is None:
            pass
        table.verify()
        for _ in range(2):
            table.read(arguments.lookups)
        # The second time the table is one that was written since its load.
        for _ in range(2):
            table.update(arguments.updates)
        table.verify(num_updated=arguments.updates)


if __name__ == "__main__":
    main()
