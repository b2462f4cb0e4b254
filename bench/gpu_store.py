"""Tables on disk, the configurations that serve them, and what a store says about itself."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gpu_workload as workload
import torch

ROOT = Path(__file__).resolve().parent.parent
MODEL = "bench"
_CHUNK_BYTES = 64 << 20
_WORTH_TELLING = 1 << 28


def load_library() -> Any:
    """Imports hps_torch: the installed package, else this tree's, with the library built for it.

    HPS_LIBRARY names another libhps_torch.so.
    """
    if importlib.util.find_spec("hps_torch") is None:
        sys.path.append(str(ROOT / "python"))
    library = os.environ.get("HPS_LIBRARY")
    if library is None:
        package = importlib.util.find_spec("hps_torch").origin
        built = ROOT / "build" / "wheel" / "lib" / "libhps_torch.so"
        if not (Path(package).parent / "lib" / built.name).exists() and built.exists():
            library = str(built)
    if library is not None:
        # The package takes the operators that are there.
        torch.ops.load_library(library)
    import hps_torch

    return hps_torch


class Table:
    """Rows of one dim, hottest first: their keys and rows on the GPU, and model files."""

    def __init__(self, name: str, rows: int, dim: int, home: Path, device: torch.device) -> None:
        self.rows, self.dim, self.device = rows, dim, device
        self.cached = rows // 10
        self.home, self.name = home, name
        self.zipf = workload.Zipf(rows)
        self.keys = workload.all_keys(rows, device)
        self._rows: torch.Tensor | None = None
        self._files: dict[str, Files] = {}

    @property
    def resident(self) -> torch.Tensor:
        """All rows in GPU memory, by rank: what `F.embedding` reads."""
        if self._rows is None:
            self._rows = torch.empty(self.rows, self.dim, device=self.device)
            for part, keys in zip(self._rows.split(1 << 18), self.keys.split(1 << 18), strict=True):
                part.copy_(workload.rows_of(keys, self.dim))
        return self._rows

    def files(self, rows: int, *, hashed: bool = False) -> Files:
        """The model files of the hottest rows. A folder is extended or cut, not written anew."""
        kind = "hashed" if hashed else "plain"
        if kind not in self._files:
            change = workload.hashed if hashed else None
            folder = self.home / f"{self.name}-{kind}"
            self._files[kind] = Files(folder, self.keys, self.dim, change)
        files = self._files[kind]
        files.resize(rows)
        return files

    def remove(self) -> None:
        for files in self._files.values():
            shutil.rmtree(files.folder, ignore_errors=True)
        self._files.clear()
        self._rows = None


class Files:
    """The folder of a table: `key` and `emb_vector`, row i of rank i."""

    def __init__(
        self,
        folder: Path,
        keys: torch.Tensor,
        dim: int,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.folder, self.dim, self.rows = folder, dim, 0
        self._keys, self._change = keys, change

    def resize(self, rows: int) -> None:
        if rows == self.rows:
            return
        self.folder.mkdir(exist_ok=True)
        paths = (self.folder / "key", self.folder / "emb_vector")
        if rows < self.rows:
            for path, width in zip(paths, (8, 4 * self.dim), strict=True):
                os.truncate(path, rows * width)
            self.rows = rows
            return
        needed = (rows - self.rows) * (8 + 4 * self.dim)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"{self.folder}: {needed:,} bytes needed, {free:,} free; choose another --dir"
            )
        first, self.rows = self.rows, 0  # nothing is sure while it is written
        started = time.perf_counter()
        mode = "r+b" if first else "wb"
        with paths[0].open(mode) as key_file, paths[1].open(mode) as row_file:
            key_file.seek(first * 8)
            row_file.seek(first * 4 * self.dim)
            self._append(key_file, row_file, first, rows)
        self.rows = rows
        if needed < _WORTH_TELLING:
            return
        print(
            f"  wrote {needed / 1e9:.2f} GB of model files for {rows - first:,} rows of dim"
            f" {self.dim} in {time.perf_counter() - started:.1f} s",
            flush=True,
        )

    def _append(self, key_file: Any, row_file: Any, first: int, last: int) -> None:
        step = _CHUNK_BYTES // (4 * self.dim)
        pinned = self._keys.is_cuda
        key_buffer = torch.empty(step, dtype=torch.int64, pin_memory=pinned)
        row_buffer = torch.empty(step, self.dim, dtype=torch.float32, pin_memory=pinned)
        for start in range(first, last, step):
            keys = self._keys[start : min(start + step, last)]
            keys = keys if self._change is None else self._change(keys)
            size = len(keys)
            key_buffer[:size].copy_(keys)
            row_buffer[:size].copy_(workload.rows_of(keys, self.dim))
            for file, buffer in ((key_file, key_buffer), (row_file, row_buffer)):
                size_bytes = buffer[:size].nbytes
                file.write((ctypes.c_char * size_bytes).from_address(buffer.data_ptr()))


class Counts(NamedTuple):
    """Keys that a table was asked for, by the tier that answered."""

    keys: int
    gpu: int
    host: int
    ssd: int
    missing: int

    def since(self, before: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))

    @property
    def hit_rate(self) -> float | None:
        return self.gpu / self.keys if self.keys else None


@dataclass(frozen=True)
class Plan:
    """What a store serves: an `embedding_cache_type`, the cache's share, (folder, rows, dim)."""

    kind: str
    share: float
    tables: tuple[tuple[str, int, int], ...]
    #: Share of the rows that are on SSD alone; 0: there is no SSD.
    on_ssd: float = 0.0
    #: `fp8_quant`.
    fp8: bool = False

    @staticmethod
    def of(kind: str, share: float, *files: Files, on_ssd: float = 0.0, fp8: bool = False) -> Plan:
        tables = tuple((str(f.folder), f.rows, f.dim) for f in files)
        return Plan(kind, share, tables, on_ssd, fp8)

    def config(self) -> dict[str, object]:
        count = len(self.tables)
        below: dict[str, object] = {"volatile_db": {"type": "parallel_hash_map"}}
        if self.on_ssd:
            host = {"type": "parallel_hash_map", "initial_cache_rate": 1 - self.on_ssd}
            below = {
                "volatile_db": host,
                "persistent_db": {"type": "rocks_db", "path": "rocksdb"},
            }
        return {
            "supportlonglong": True,
            **below,
            "models": [
                {
                    "model": MODEL,
                    "sparse_files": [folder for folder, _, _ in self.tables],
                    "embedding_vecsize_per_table": [dim for _, _, dim in self.tables],
                    "maxnum_catfeature_query_per_table_per_sample": [1] * count,
                    "default_value_for_each_table": [0.0] * count,
                    "deployed_device_list": [0],
                    "embedding_cache_type": self.kind,
                    "gpucache": True,
                    "gpucacheper": self.share,
                    "fp8_quant": self.fp8,
                    # No hit_rate_threshold: results are exact.
                }
            ],
        }


class Store:
    """An open configuration."""

    def __init__(self, hps_torch: Any, path: Path, plan: Plan) -> None:
        self.path, self.plan = str(path), plan
        self.hps_torch = hps_torch
        path.write_text(json.dumps(plan.config(), indent=1))
        started = time.perf_counter()
        hps_torch.open(path)
        self._opened = time.perf_counter()
        rows = sum(rows for _, rows, _ in plan.tables)
        print(
            f"  opened {plan.kind}, {rows:,} rows in {len(plan.tables)} table(s)"
            + (f", {plan.share:.0%} cached" if plan.kind != "static" else "")
            + f", in {self._opened - started:.1f} s",
            flush=True,
        )

    @property
    def age_s(self) -> float:
        """Seconds since it was opened."""
        return time.perf_counter() - self._opened

    def lookup(self, keys: torch.Tensor, table: int = 0) -> torch.Tensor:
        return torch.ops.hps.lookup(keys, self.path, MODEL, table, self.plan.tables[table][2])

    def layer(self, table: int = 0) -> torch.nn.Module:
        return self.hps_torch.LookupLayer(self.path, MODEL, table, self.plan.tables[table][2])

    def counts(self, table: int = 0) -> Counts:
        """What has been served, lookups that were still queued included."""
        torch.cuda.synchronize()
        stats = self.hps_torch.stats(self.path)["models"][MODEL]["tables"][table]
        names = ("keys", "gpu_hits", "host_hits", "ssd_hits", "missing")
        return Counts(*(int(stats.get(name, 0)) for name in names))


class Stores:
    """Keeps one store open at a time, as long as the same is asked for."""

    def __init__(self, hps_torch: Any, home: Path) -> None:
        self.hps_torch, self._home = hps_torch, home
        self._open: Store | None = None
        self._count = 0

    def open(
        self, kind: str, share: float, *files: Files, on_ssd: float = 0.0, fp8: bool = False
    ) -> Store:
        plan = Plan.of(kind, share, *files, on_ssd=on_ssd, fp8=fp8)
        if self._open is None or self._open.plan != plan:
            self.close()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            self._count += 1
            self._open = Store(self.hps_torch, self._home / f"ps{self._count}.json", plan)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            path, self._open = self._open.path, None
            self.hps_torch.close(path)
