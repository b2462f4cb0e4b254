"""Shared by the GPU tests: stores on disk, test cases for the types of cache, waiting.

No pytest and no numpy: the machine with the GPU may have nothing but Python and torch.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

# A library that is not beside the package, such as one that was built on another machine.
if os.environ.get("HPS_LIBRARY"):
    torch.ops.load_library(os.environ["HPS_LIBRARY"])

import hps_torch
from gpu.tables import Table, assert_rows

#: Reduced sizes, for compute-sanitizer.
SMALL = os.environ.get("HPS_TEST_SMALL") == "1"
DEVICE = torch.device("cuda", 0)

#: Tools that watch kernels make launches wait for each other, and take memory of the GPU.
needs_no_tool = unittest.skipIf(SMALL, "tools that watch kernels change timing and memory")
#: Capturing takes memory that torch's allocator has at hand.
needs_allocator = unittest.skipIf(
    os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") == "1", "torch's allocator is off"
)

#: The values of embedding_cache_type, and what is below the GPU.
CACHES = ("static", "dynamic", "uvm")
TIERS = ("host", "host and ssd")
#: What a few tests put there besides: memory that processes share, and host memory within a budget.
ALL_TIERS = (*TIERS, "shared", "shared and ssd", "budget and ssd")
#: What "budget and ssd" has: not enough for the rows of test_rows.
BUDGET = 24 << 20

torch.set_num_threads(1)


def size(full: int, small: int) -> int:
    """Returns the number that suits this run."""
    return small if SMALL else full


class Store:
    """A configuration on disk and its tables; `close` removes both."""

    def __init__(
        self,
        *tables: Table,
        cache: str = "dynamic",
        tiers: str = "host",
        volatile_db: dict[str, Any] | None = None,
        top: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hps-test-gpu-")
        self.tables = tables
        self.cache = cache
        folder = Path(self._folder.name)
        for i, table in enumerate(tables):
            hps_torch.save_table(folder / "tables" / str(i), table.keys, table.vectors)
        host = {"type": "parallel_hash_map", "num_partitions": 4, **(volatile_db or {})}
        below: dict[str, Any] = {"volatile_db": host}
        if tiers.endswith("and ssd"):
            below["volatile_db"] = {"initial_cache_rate": 0.3, **host}
            below["persistent_db"] = {"type": "rocks_db", "path": "rocksdb", "num_threads": 2}
        if tiers.startswith("budget"):
            below["volatile_db"] = {
                **host,
                "memory_bytes": BUDGET,
                "cache_missed_embeddings": True,
                "overflow_policy": "evict_oldest",
            }
        if tiers.startswith("shared"):
            # A segment of its own, which goes with the store.
            below["volatile_db"]["type"] = "multi_process_hash_map"
            below["volatile_db"]["shared_memory_name"] = folder.name
        model = {
            "model": "model",
            "sparse_files": [f"tables/{i}" for i in range(len(tables))],
            "embedding_vecsize_per_table": [table.dim for table in tables],
            "default_value_for_each_table": [table.default for table in tables],
            "maxnum_catfeature_query_per_table_per_sample": [1] * len(tables),
            "deployed_device_list": [DEVICE.index or 0],
            "embedding_cache_type": cache,
            **settings,
        }
        long_keys = all(table.key_bits == 64 for table in tables)
        self.path = str(folder / "ps.json")
        self._write({"supportlonglong": long_keys, **below, "models": [model], **(top or {})})

    def _write(self, config: dict[str, Any]) -> None:
        Path(self.path).write_text(json.dumps(config, indent=2))

    def change(self, **settings: Any) -> None:
        """Changes settings of the model in ps.json."""
        config = json.loads(Path(self.path).read_text())
        config["models"][0].update(settings)
        self._write(config)

    def open(self) -> None:
        hps_torch.open(self.path)

    def lookup(self, keys: torch.Tensor, table_id: int = 0) -> torch.Tensor:
        return torch.ops.hps.lookup(keys, self.path, "model", table_id, self.tables[table_id].dim)

    def layer(self, table_id: int = 0) -> hps_torch.LookupLayer:
        return hps_torch.LookupLayer(self.path, "model", table_id, self.tables[table_id].dim)

    def counts(self, table_id: int = 0) -> dict[str, int]:
        """Returns where the keys of all lookups so far were found; checks that the sum is right."""
        torch.cuda.synchronize()
        stats: Any = hps_torch.stats(self.path)["models"]["model"]["tables"][table_id]
        places = ("gpu_hits", "host_hits", "redis_hits", "ssd_hits", "missing")
        counts = {name: int(stats[name]) for name in (*places, "keys")}
        assert sum(counts[name] for name in places) == counts["keys"], f"does not add up: {counts}"
        return counts

    def counts_of(self, work: Callable[[], object], table_id: int = 0) -> dict[str, int]:
        """Returns what `work` adds to the counts."""
        self.open()
        before = self.counts(table_id)
        work()
        after = self.counts(table_id)
        return {name: after[name] - before[name] for name in after}

    def close(self) -> None:
        if Path(self.path).exists():
            close_if_open(self.path)
        self._folder.cleanup()


def close_if_open(path: str) -> None:
    try:
        hps_torch.close(path)
    except hps_torch.HpsError as error:
        if error.code != hps_torch.ErrorCode.NOT_FOUND:
            raise


class GpuTestCase(unittest.TestCase):
    """A test that needs a GPU."""

    cache = "dynamic"
    tiers = "host"

    @classmethod
    def setUpClass(cls) -> None:
        if DEVICE.type == "cuda" and not torch.cuda.is_available():
            raise unittest.SkipTest("no GPU")

    def make_store(self, *tables: Table, **settings: Any) -> Store:
        """Makes a store of this class's arrangement that lives as long as the test."""
        store = Store(*tables, **{"cache": self.cache, "tiers": self.tiers, **settings})
        self.addCleanup(store.close)
        return store

    @classmethod
    def make_class_store(cls, *tables: Table, **settings: Any) -> Store:
        """Makes one that all tests of the class share."""
        store = Store(*tables, **{"cache": cls.cache, "tiers": cls.tiers, **settings})
        cls.addClassCleanup(store.close)
        return store

    def check(self, store: Store, keys: torch.Tensor, table_id: int = 0) -> None:
        """Looks keys up, on the GPU; every row and the counts must be right."""
        table = store.tables[table_id]
        found: list[torch.Tensor] = []
        keys = keys if keys.device == DEVICE else keys.to(DEVICE)
        added = store.counts_of(lambda: found.append(store.lookup(keys, table_id)), table_id)
        assert_rows(found[0], keys, table)
        assert added["keys"] == keys.numel(), f"{added} for {keys.numel()} keys"
        assert added["missing"] == table.count_unknown(keys), f"{added}"
        if store.cache == "static":
            assert added["gpu_hits"] == added["keys"] - added["missing"], f"{added}"


def each_arrangement(
    caches: Iterable[str] = CACHES, tiers: Iterable[str] = TIERS
) -> Callable[[type], type]:
    """Makes one test case of a class for each type of cache and what is below it."""

    def make(cls: type) -> type:
        for cache, below in itertools.product(caches, tiers):
            name = f"{cls.__name__}[{cache}, {below}]"
            members = {"cache": cache, "tiers": below, "__module__": cls.__module__}
            case = type(name, (cls, GpuTestCase), members)
            setattr(sys.modules[cls.__module__], name, case)
        return cls

    return make


def error_of(call: Callable[[], object], kind: type[Exception] = RuntimeError) -> Any:
    """Returns the error that `call` must raise."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def message_of(call: Callable[[], object], kind: type[Exception] = RuntimeError) -> str:
    """Returns the message of the error that `call` must raise."""
    message = str(error_of(call, kind))
    # Where in our C++ it was found is nothing that a user can act on.
    assert ".cpp" not in message, message
    return message


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Asks again and again until the condition holds or the time is up."""
    limit = time.monotonic() + size(1, 10) * seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.002)
    return True


def wait_until_cached(store: Store, keys: torch.Tensor, share: float = 1.0) -> bool:
    """Looks keys up until the cache has them; tells whether that came to be."""
    wanted = share * keys.numel()
    return wait_until(
        lambda: store.counts_of(lambda: store.lookup(keys))["gpu_hits"] >= wanted,
    )


def start_python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Starts a script in a fresh interpreter that finds what this one has found."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
