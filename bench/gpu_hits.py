"""Rows that are in GPU memory: hits of every size, the host's share of a call, table sizes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import gpu_workload as workload
import torch
import torch.nn.functional as functional
from gpu_measure import (
    GROUPS,
    Call,
    Reading,
    Report,
    Times,
    as_fp8,
    as_loaded,
    checked,
    host_us,
    measure,
    speed,
    spread,
    wrong_rows,
)
from gpu_store import Store, Stores, Table

SIZES = (1024, 16384, 65536, 1048576)
COLUMNS = (
    *("system", "drawn", "dim", "keys", "t_us", "spread", "g1_us", "g1_spread", "g16_us"),
    *("g16_spread", "gkeys", "gbytes", "g16_gkeys", "hit", "ratio", "g16_ratio", "bound", "check"),
)


class Kind(NamedTuple):
    """What a `static` store holds."""

    system: str
    #: Keys of 60 bits, compared in full.
    hashed: bool = False
    #: Rows of 8-bit floats, each with a scale.
    fp8: bool = False

    def bytes_per_key(self, dim: int) -> int:
        stored = dim + 4 if self.fp8 else 4 * dim
        return 8 + (64 if self.hashed else 32) + stored + 4 * dim

    @property
    def reading(self) -> Reading:
        return as_fp8 if self.fp8 else as_loaded


HIT = Kind("static")
HASHED = Kind("static, 60-bit keys", hashed=True)
FP8 = Kind("static, fp8_quant", fp8=True)


@dataclass
class Bench:
    """What all sections share."""

    home: Path
    device: torch.device
    report: Report
    stores: Stores
    #: Bytes per second, read and written, that memory can move.
    bandwidth: float
    #: Divides the number of rows.
    shrink: int = 1
    baselines: dict[tuple[str, int, int, int], Times] = field(default_factory=dict)

    def bound_us(self, size: int, dim: int, kind: Kind) -> float:
        """Time in which memory moves a key, a probe and a row, read and written, per key."""
        return size * kind.bytes_per_key(dim) / self.bandwidth * 1e6

    def positions(self, drawn: str, dim: int, size: int, items: int) -> list[torch.Tensor]:
        """Batches of positions in a list of `items` keys."""
        phase = workload.HIT_UNIFORM if drawn == "uniform" else workload.HIT_ZIPF
        draws = [
            workload.uniforms(workload.stream(dim, phase, size, batch), size, self.device)
            for batch in range(workload.BATCHES)
        ]
        if drawn == "uniform":
            return [workload.uniform_positions(u, items) for u in draws]
        zipf = workload.Zipf(items)
        return [zipf.ranks(u) for u in draws]

    def baseline(
        self, table: Table, drawn: str, positions: list[torch.Tensor], items: int
    ) -> Times:
        """F.embedding on the table's hottest rows, measured once per run and printed."""
        size = positions[0].numel()
        key = (drawn, table.dim, size, items)
        if key not in self.baselines:
            weight = table.resident[:items]
            times = measure(lambda batch: functional.embedding(batch, weight), positions)
            self.baselines[key] = times
            self.report.row(
                system="F.embedding",
                drawn=drawn,
                dim=table.dim,
                rows=items,
                keys=size,
                **times.columns(),
                **speed(size, table.dim, times.t_us),
                **speed(size, table.dim, times.g16_us, "g16_"),
            )
        return self.baselines[key]


def hit_row(
    bench: Bench,
    store: Store,
    table: Table,
    kind: Kind,
    drawn: str,
    positions: list[torch.Tensor],
    keys: torch.Tensor,
) -> str | None:
    """Measures one cell: `positions` into `keys`. Returns why there are no graphs."""
    size, dim, items = positions[0].numel(), table.dim, len(keys)
    base = bench.baseline(table, drawn, positions, items)
    batches = [keys[part] for part in positions]
    wrong = sum(checked(store.lookup, batch, dim, kind.reading) for batch in batches)
    before = store.counts()
    refuses = store.plan.kind == "dynamic"
    times = measure(store.lookup, batches, refuses_graphs=refuses, check=kind.reading)
    hit_rate = store.counts().since(before).hit_rate
    graphs = times.g16_us is not None and base.g16_us is not None
    bench.report.row(
        system=kind.system,
        drawn=drawn,
        dim=dim,
        rows=items,
        keys=size,
        hit=None if hit_rate is None else 100 * hit_rate,
        ratio=base.t_us / times.t_us,
        g16_ratio=base.g16_us / times.g16_us if graphs else None,
        bound=bench.bound_us(size, dim, kind) / times.kernel_us,
        wrong=wrong + times.wrong,
        **times.columns(),
        **speed(size, dim, times.t_us),
        **speed(size, dim, times.g16_us, "g16_"),
    )
    return times.no_graph


def hits(bench: Bench, table: Table, *, name: str = "hit", kind: Kind = HIT) -> None:
    """The C hottest rows, all of them held: `static`."""
    bench.report.begin(name, *COLUMNS)
    files = table.files(table.cached, hashed=kind.hashed)
    store = bench.stores.open("static", 1.0, files, fp8=kind.fp8)
    keys = table.keys[: table.cached]
    keys = workload.hashed(keys) if kind.hashed else keys
    for size in SIZES:
        for drawn in ("uniform", "Zipf"):
            positions = bench.positions(drawn, table.dim, size, len(keys))
            hit_row(bench, store, table, kind, drawn, positions, keys)


def hashed_hits(bench: Bench, table: Table) -> None:
    """The same with keys of 60 bits, which are compared in full: a probe of 64 bytes."""
    hits(bench, table, name="hashed", kind=HASHED)


def fp8_hits(bench: Bench, table: Table) -> None:
    """The same with rows of 8-bit floats: every answer is the round trip of what was loaded."""
    hits(bench, table, name="fp8", kind=FP8)


def cached_store(bench: Bench, table: Table, kind: str) -> Store:
    """All rows of the table, a tenth of them in the cache: exactly C slots."""
    share = table.cached / table.rows
    return bench.stores.open(kind, share, table.files(table.rows))


def warm(bench: Bench, table: Table) -> None:
    """The share of the C hottest rows that the cache holds after opening, in one lookup."""
    bench.stores.close()
    bench.report.begin("warm", "system", "dim", "rows", "keys", "hit", "check")
    store = cached_store(bench, table, "dynamic")
    keys = table.keys[: table.cached]
    before = store.counts()
    rows = store.lookup(keys)
    counts = store.counts().since(before)
    bench.report.row(
        system="dynamic, C hottest",
        dim=table.dim,
        rows=table.rows,
        keys=len(keys),
        hit=100 * (counts.hit_rate or 0.0),
        wrong=wrong_rows(rows, keys),
    )


class Plain(torch.nn.Module):
    """What the layer replaces."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        return functional.embedding(keys, self.weight)


def host(bench: Bench, table: Table) -> None:
    """What a call of 1,024 keys costs the host: enqueued back to back, nobody waits."""
    bench.report.begin(
        *("host", "system", "dim", "keys", "host_us", "host_spread", "script_us", "script_spread"),
        *("ratio", "script_ratio"),
    )
    store = bench.stores.open("static", 1.0, table.files(table.cached))
    weight = table.resident[: table.cached]
    positions = bench.positions("uniform", table.dim, 1024, table.cached)
    batches = [table.keys[part] for part in positions]
    plain = torch.jit.script(Plain(weight))
    layer = torch.jit.script(store.layer())
    eager: dict[str, list[float]] = {"F.embedding": [], "static": []}
    scripted: dict[str, list[float]] = {"F.embedding": [], "static": []}

    def turn(call: Call, batches: list[torch.Tensor]) -> float:
        return statistics.median(host_us(call, batches, rounds=3))

    for _ in range(GROUPS):  # they take turns
        eager["F.embedding"].append(
            turn(lambda batch: functional.embedding(batch, weight), positions)
        )
        eager["static"].append(turn(store.lookup, batches))
        scripted["F.embedding"].append(turn(plain, positions))
        scripted["static"].append(turn(layer, batches))
    base, base_script = (statistics.median(t["F.embedding"]) for t in (eager, scripted))
    for system in eager:
        ours, ours_script = (statistics.median(t[system]) for t in (eager, scripted))
        ratios = {} if system == "F.embedding" else {"ratio": base / ours}
        if ratios:
            ratios["script_ratio"] = base_script / ours_script
        bench.report.row(
            system=system,
            dim=table.dim,
            keys=1024,
            host_us=ours,
            host_spread=spread(eager[system]),
            script_us=ours_script,
            script_spread=spread(scripted[system]),
            **ratios,
        )


def sizes(bench: Bench, table: Table) -> None:
    """The same keys per call on tables of different sizes."""
    bench.report.begin("sizes", "rows", *COLUMNS)
    for full in (1_000_000, 10_000_000, 50_000_000):
        rows = full // bench.shrink
        store = bench.stores.open("static", 1.0, table.files(rows))
        positions = bench.positions("uniform", table.dim, SIZES[-1], rows)
        hit_row(bench, store, table, HIT, "uniform", positions, table.keys[:rows])
