"""Model files into the database (`hps load`) beside `cp` of the same files, in turns.

Both begin with files that are not in the page cache and end with what they wrote on the disk
(`cp` and `sync`; a load syncs by itself).
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import deployment
import numpy as np


def write_model_files(folder: Path, rows: int, dim: int, *, hashed: bool) -> int:
    """Random rows; keys from 0 on, or 63 bits of a hash of them. Returns their bytes."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    piece = 1 << 20
    with (folder / "key").open("wb") as keys, (folder / "emb_vector").open("wb") as vectors:
        for start in range(0, rows, piece):
            ids = np.arange(start, min(rows, start + piece), dtype=np.uint64)
            if hashed:
                # An odd factor and a shift that can be undone: no two ids become one key.
                ids *= np.uint64(0x9E3779B97F4A7C15)
                ids ^= ids >> np.uint64(32)
                ids *= np.uint64(0xD6E8FEB86659FD93)
            keys.write(ids.tobytes())
            vectors.write(rng.random((len(ids), dim), dtype=np.float32).tobytes())
    os.sync()
    return sum(file.stat().st_size for file in folder.iterdir())


def forget(files: Iterable[Path]) -> None:
    """Takes files out of the page cache."""
    for file in files:
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            continue
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy(files: Path, to: Path) -> float:
    """Seconds of a copy that is on the disk when it ends."""
    forget(files.iterdir())
    start = time.perf_counter()
    subprocess.run(["cp", "-r", files, to], check=True)
    for file in to.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - start


def load(home: Path, files: Path, dim: int) -> tuple[float, int, int]:
    """Seconds of a load, the process's largest memory, and the bytes of the database."""
    forget(files.iterdir())
    database = {"type": "rocks_db", "path": "rocksdb"}
    config = deployment.write_config(home / "ps.json", files, dim, persistent_db=database)
    program = Path(sys.executable).parent / "hps"
    start = time.perf_counter()
    # A process between this one and the program: its children's largest memory is the program's.
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, program, "load", config]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    on_disk = sum(file.stat().st_size for file in (home / "rocksdb").iterdir() if file.is_file())
    return seconds, int(done.stdout) * 1024, on_disk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[32])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dir", default="/var/tmp", help="on the disk that is measured")
    arguments = parser.parse_args()
    os.environ.setdefault("HPS_LOG", "warn")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for dim in arguments.dims:
        for hashed in (False, True):
            with tempfile.TemporaryDirectory(dir=arguments.dir) as name:
                home = Path(name)
                files = home / "table"
                num_bytes = write_model_files(files, arguments.rows, dim, hashed=hashed)
                copies, loads = [], []
                for _ in range(arguments.repeat):
                    copies.append(copy(files, home / "copy"))
                    shutil.rmtree(home / "copy")
                    loads.append(load(home, files, dim))
                    shutil.rmtree(home / "rocksdb")
                times = [seconds for seconds, _, _ in loads]
                copied, loaded = statistics.median(copies), statistics.median(times)
                ratios = [mine / theirs for mine, theirs in zip(times, copies, strict=True)]
                keys = "hashed" if hashed else "dense"
                print(
                    f"{arguments.rows:,} rows of dim {dim}, {keys} keys, "
                    f"{num_bytes / 1e9:.2f} GB: cp {copied:.2f} s ({min(copies):.2f} to "
                    f"{max(copies):.2f}), {num_bytes / copied / 1e9:.2f} GB/s; hps load "
                    f"{loaded:.2f} s ({min(times):.2f} to {max(times):.2f}), "
                    f"{num_bytes / loaded / 1e9:.2f} GB/s, {arguments.rows / loaded / 1e6:.1f} M "
                    f"rows/s; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
                    f"{max(ratios):.2f}); at most {max(m for _, m, _ in loads) >> 20} MB; "
                    f"{loads[-1][2] / num_bytes:.2f} bytes on disk for each",
                    flush=True,
                )


if __name__ == "__main__":
    main()
