"""Builds stores for the tests: tables of recognisable rows, a ps.json, an oracle each."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hps_torch
from oracle import Oracle

# The tensors are small: more threads would only wait for each other.
torch.set_num_threads(1)

#: The arrangements of tiers that every promise about rows must hold in.
TIERS = ("host", "host and ssd", "ssd", "shared memory")

#: Numbers of segments of shared memory, which all processes of the machine see.
SEGMENTS = itertools.count()

INT64 = torch.iinfo(torch.int64)
INT32 = torch.iinfo(torch.int32)


def tier_settings(tiers: str) -> dict[str, Any]:
    """Returns the database sections of a ps.json."""
    hash_map = {"type": "parallel_hash_map", "num_partitions": 4}
    rocks_db = {"type": "rocks_db", "path": "rocksdb", "num_threads": 2}
    if tiers == "shared memory":
        name = f"hps-test-{os.getpid()}-{next(SEGMENTS)}"
        return {
            "volatile_db": {
                "type": "multi_process_hash_map",
                "shared_memory_name": name,
                "shared_memory_size": 64 << 20,
            }
        }
    if tiers == "host":
        return {"volatile_db": hash_map}
    if tiers == "host and ssd":
        return {
            "volatile_db": {**hash_map, "initial_cache_rate": 0.5},
            "persistent_db": rocks_db,
        }
    if tiers == "ssd":
        return {"volatile_db": {"type": "disabled"}, "persistent_db": rocks_db}
    raise ValueError(tiers)


@dataclasses.dataclass
class Table:
    """Keys, rows and default of one table."""

    keys: torch.Tensor
    vectors: torch.Tensor
    default: float = 0.0

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]


def random_bits(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Returns float32 values of random bits: NaNs, infinities and denormals among them."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(INT32.min, INT32.max, (rows, dim), generator=generator)
    return bits.to(torch.int32).view(torch.float32)


def table_of(keys: torch.Tensor, dim: int = 8, default: float = 0.0, seed: int = 0) -> Table:
    """Returns a table whose rows begin with the low bits of their key."""
    vectors = random_bits(len(keys), dim, seed)
    vectors[:, 0] = keys.to(torch.int64).to(torch.int32).view(torch.float32)
    return Table(keys.to(torch.int64), vectors, default)


def dense_table(rows: int = 100, dim: int = 8, default: float = 0.0, seed: int = 0) -> Table:
    """Returns a table with the keys 0 to ``rows`` - 1."""
    return table_of(torch.arange(rows), dim, default, seed)


@dataclasses.dataclass
class Store:
    """A configuration on disk and the truth about its tables."""

    folder: Path
    path: str
    model: str
    oracles: list[Oracle]

    def lookup(self, keys: torch.Tensor, table_id: int = 0) -> torch.Tensor:
        return hps_torch.lookup(keys, self.path, self.model, table_id, self.oracles[table_id].dim)

    def layer(self, table_id: int = 0) -> hps_torch.LookupLayer:
        return hps_torch.LookupLayer(self.path, self.model, table_id, self.oracles[table_id].dim)

    def stats(self, table_id: int = 0) -> Any:
        """Returns the statistics of one table."""
        return hps_torch.stats(self.path)["models"][self.model]["tables"][table_id]

    def config(self) -> Any:
        return json.loads(Path(self.path).read_text())

    def rewrite(self, change: Callable[[Any], object]) -> None:
        """Changes ps.json in place."""
        config = self.config()
        change(config)
        Path(self.path).write_text(json.dumps(config, indent=2))

    def table_folder(self, table_id: int = 0) -> Path:
        return self.folder / "tables" / str(table_id)


StoreMaker = Callable[..., Store]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[StoreMaker]:
    """Writes tables and a ps.json into a folder of its own; closes every store at the end."""
    made = 0

    def make(
        *tables: Table,
        tiers: str = "host",
        model: str = "model",
        supportlonglong: bool = True,
        top: dict[str, Any] | None = None,
        **model_settings: Any,
    ) -> Store:
        nonlocal made
        folder = tmp_path / f"store{made}"
        made += 1
        chosen = tables or (dense_table(),)
        for i, table in enumerate(chosen):
            hps_torch.save_table(folder / "tables" / str(i), table.keys, table.vectors)
        config = {
            "supportlonglong": supportlonglong,
            **tier_settings(tiers),
            "models": [
                {
                    "model": model,
                    "sparse_files": [f"tables/{i}" for i in range(len(chosen))],
                    "embedding_vecsize_per_table": [table.dim for table in chosen],
                    "default_value_for_each_table": [table.default for table in chosen],
                    "maxnum_catfeature_query_per_table_per_sample": [1] * len(chosen),
                    "deployed_device_list": [0],
                    "max_batch_size": 16,
                    **model_settings,
                }
            ],
            **(top or {}),
        }
        path = folder / "ps.json"
        path.write_text(json.dumps(config, indent=2))
        key_bits = 64 if supportlonglong else 32
        oracles = [Oracle(table.keys, table.vectors, table.default, key_bits) for table in chosen]
        return Store(folder, str(path), model, oracles)

    yield make
    hps_torch.close_all()


@pytest.fixture(params=TIERS)
def tiers(request: pytest.FixtureRequest) -> str:
    """Runs a test once for each arrangement of tiers."""
    return request.param


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script in a fresh interpreter and waits at most a minute for it."""

    def run(
        script: str, *arguments: object, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            # Without the lines that say what is loaded: what remains is a complaint.
            env={**os.environ, "HPS_LOG": "warn", **(env or {})},
            check=False,
        )

    return run
