"""Times of work on the GPU, checks of rows, and the tables that are printed."""

from __future__ import annotations

import contextlib
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gpu_workload as workload
import torch

Call = Callable[[Any], Any]
#: What is read of rows that were loaded.
Reading = Callable[[torch.Tensor], torch.Tensor]

#: Calls of one cell that are enqueued back to back.
QUEUED = 64
#: Groups of a cell's calls, of which each has a median.
GROUPS = 5
#: Clock cycles that keep a GPU busy for about 0.2 ms, while the host enqueues what is measured.
SPACER_CYCLES = 350_000


def as_loaded(rows: torch.Tensor) -> torch.Tensor:
    return rows


def as_fp8(rows: torch.Tensor) -> torch.Tensor:
    """What `fp8_quant` makes of rows, by torch's own conversions: E4M3 and a scale a row."""
    largest = rows.abs().amax(-1, keepdim=True)
    # By a tensor: torch multiplies by the reciprocal of a Python number on a GPU.
    scale = (largest / torch.full_like(largest, 448)).clamp(min=1 / (448 * 512))
    return (rows / scale).to(torch.float8_e4m3fn).to(torch.float32) * scale


def wrong_rows(rows: torch.Tensor, keys: torch.Tensor, reading: Reading = as_loaded) -> int:
    """Rows in which any float differs from what the key's row should be."""
    dim = rows.shape[-1]
    wrong = torch.zeros((), dtype=torch.int64, device=rows.device)
    step = 1 << 17
    for part, part_keys in zip(rows.split(step), keys.split(step), strict=True):
        wrong += (part != reading(workload.rows_of(part_keys, dim))).any(1).sum()
    return int(wrong)


def poison(size: int, dim: int, device: torch.device) -> None:
    """Fills the memory that the next result will be given with 0xFF, which no row contains."""
    torch.empty(size, dim, device=device).view(torch.int32).fill_(-1)


def checked(call: Call, keys: torch.Tensor, dim: int, reading: Reading = as_loaded) -> int:
    """Calls once, into poisoned memory, and returns the number of wrong rows."""
    poison(keys.numel(), dim, keys.device)
    return wrong_rows(call(keys), keys, reading)


def spread(
    times: Sequence[float], middle: Callable[[Sequence[float]], float] = statistics.median
) -> float:
    """How far the medians of groups of calls lie apart, in percent of the median of all.

    Groups follow each other in time, so that what changes while a cell is measured shows as well as
    noise. There are at least as many calls as groups. `middle` may be another mean.
    """
    count = len(times)
    ends = [count * i // GROUPS for i in range(GROUPS + 1)]
    middles = [middle(times[start:end]) for start, end in pairwise(ends)]
    return 100 * (max(middles) - min(middles)) / middle(times)


@dataclass
class Times:
    """Medians of one cell: on a stream, in graphs of one call, in a graph of all batches' calls.

    Each with its spread, in percent.
    """

    t_us: float
    t_spread: float
    g1_us: float | None = None
    g1_spread: float | None = None
    g16_us: float | None = None
    g16_spread: float | None = None
    #: Wrong rows, of the results in graphs.
    wrong: int = 0
    #: Why there are no graphs.
    no_graph: str | None = None

    @property
    def kernel_us(self) -> float:
        """The best estimate of the GPU's own time."""
        return self.t_us if self.g16_us is None else self.g16_us

    def columns(self) -> dict[str, float | None]:
        """Of a row of the report."""
        return {
            "t_us": self.t_us,
            "spread": self.t_spread,
            "g1_us": self.g1_us,
            "g1_spread": self.g1_spread,
            "g16_us": self.g16_us,
            "g16_spread": self.g16_spread,
        }


def pairs(count: int) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
    return [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(count)
    ]


def elapsed_us(events: Sequence[tuple[torch.cuda.Event, torch.cuda.Event]]) -> list[float]:
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in events]


def queued(call: Call, batches: Sequence[Any], count: int = QUEUED) -> list[float]:
    """Microseconds of each of `count` calls that are enqueued back to back."""
    events = pairs(count)
    torch.cuda.synchronize()
    for i, (start, end) in enumerate(events):
        start.record()
        call(batches[i % len(batches)])
        end.record()
    return elapsed_us(events)


def occupy() -> None:
    """Keeps the GPU busy, so that what is enqueued next does not wait for its launch."""
    torch.cuda._sleep(SPACER_CYCLES)  # noqa: SLF001 - the kernel that torch has for this


def capture(
    call: Call, batches: Sequence[Any], pool: Any, stream: torch.cuda.Stream
) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of one call per batch, and the last call's result."""
    graph = torch.cuda.CUDAGraph()
    result = None
    torch.cuda.synchronize()
    # What `with torch.cuda.graph(...)` does, but without emptying torch's caches each time.
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=pool)
        try:
            for batch in batches:
                result = None  # every call writes to the same memory
                result = call(batch)
        except BaseException:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
    return graph, result


def replay(graphs: Sequence[torch.cuda.CUDAGraph], count: int) -> list[float]:
    events = pairs(count)
    torch.cuda.synchronize()
    for i, (start, end) in enumerate(events):
        start.record()
        graphs[i % len(graphs)].replay()
        end.record()
    return elapsed_us(events)


def measure(
    call: Call,
    batches: Sequence[Any],
    *,
    refuses_graphs: bool = False,
    check: Reading | None = None,
) -> Times:
    """Measures a call on a stream and in graphs.

    Args:
        call: Takes a batch.
        batches: They take turns.
        refuses_graphs: A capture may be refused, which is noted.
        check: Batches are keys, results their rows: those of a graph are checked against this
            reading of what was loaded.
    """
    for batch in batches:
        call(batch)
    on_stream = queued(call, batches)
    times = Times(statistics.median(on_stream), spread(on_stream))
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            call(batches[0])
        singles = [capture(call, [batch], pool, stream)[0] for batch in batches]
        whole, result = capture(call, batches, pool, stream)
    except RuntimeError as error:
        if not refuses_graphs:
            raise
        times.no_graph = str(error).strip().splitlines()[0]
        return times
    replay(singles, len(singles))
    alone = replay(singles, QUEUED)
    times.g1_us, times.g1_spread = statistics.median(alone), spread(alone)
    if check is not None:
        result.view(torch.int32).fill_(-1)
    replay([whole], 2)
    if check is not None:
        times.wrong = wrong_rows(result, batches[-1], check)
    together = replay([whole], 15 if times.t_us >= 200 else 50)
    times.g16_us = statistics.median(together) / len(batches)
    times.g16_spread = spread(together)
    del singles, whole, result
    torch.cuda.empty_cache()
    return times


def host_us(call: Call, batches: Sequence[Any], calls: int = 500, rounds: int = 7) -> list[float]:
    """Host time of a call among calls that are enqueued without waiting, in each round."""
    times = []
    for _ in range(rounds + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for i in range(calls):
            call(batches[i % len(batches)])
        times.append((time.perf_counter() - started) / calls * 1e6)
        torch.cuda.synchronize()
    return times[2:]


def copy_bandwidth(device: torch.device) -> tuple[float, float]:
    """Bytes per second, read and written, of a copy within GPU memory; and the spread."""
    source = torch.zeros(1 << 29, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    times = queued(target.copy_, [source], 24)[4:]
    return 2 * source.nbytes / (statistics.median(times) * 1e-6), spread(times)


#: Name: header, width (negative: to the left), format.
COLUMNS: dict[str, tuple[str, int, str]] = {
    "system": ("system", -24, ""),
    "drawn": ("drawn", -8, ""),
    "dim": ("dim", 4, "d"),
    "rows": ("rows", 11, ",d"),
    "keys": ("keys", 9, ",d"),
    # A spread stands behind the time that it is of.
    "t_us": ("t_us", 9, ".2f"),
    "spread": ("spread", 6, ".1f"),
    "g1_us": ("g1_us", 9, ".2f"),
    "g1_spread": ("spread", 6, ".1f"),
    "g16_us": ("g16_us", 9, ".2f"),
    "g16_spread": ("spread", 6, ".1f"),
    "queued_us": ("queued_us", 9, ".2f"),
    "queued_spread": ("spread", 6, ".1f"),
    "age_s": ("after_s", 7, ".1f"),
    "settling": ("extra", 5, "d"),
    "p99_us": ("p99_us", 9, ".2f"),
    "wall_us": ("wall_us", 9, ".2f"),
    "wall_spread": ("spread", 6, ".1f"),
    "wall_p99_us": ("w_p99_us", 9, ".2f"),
    "over_empty_us": ("-empty", 8, ".2f"),
    "host_us": ("host_us", 8, ".2f"),
    "host_spread": ("spread", 6, ".1f"),
    "script_us": ("script_us", 9, ".2f"),
    "script_spread": ("spread", 6, ".1f"),
    "gkeys": ("Gkeys/s", 8, ".3f"),
    "gbytes": ("GB/s", 7, ".1f"),
    "g16_gkeys": ("g16 Gk/s", 8, ".3f"),
    "g16_gbytes": ("g16 GB/s", 8, ".1f"),
    "hit": ("hit %", 7, ".2f"),
    "hit_min": ("worst %", 7, ".2f"),
    "ideal": ("ideal %", 7, ".2f"),
    "on_ssd": ("on SSD", 8, ",.0f"),
    "missed": ("missed", 9, ",.0f"),
    "missed_rate": ("M missed/s", 10, ".1f"),
    "offered": ("offered", 9, ",.0f"),
    "added": ("added", 9, ",.0f"),
    "offered_mb": ("offered MB", 10, ".2f"),
    "added_mb": ("added MB", 8, ".2f"),
    "ratio": ("x F.emb", 8, ".2f"),
    "g16_ratio": ("g16 x F.emb", 11, ".2f"),
    "script_ratio": ("x scripted", 10, ".2f"),
    "bound": ("of bound", 8, ".3f"),
    "check": ("check", -10, ""),
    "alone_us": ("alone_us", 9, ".1f"),
    "alone_spread": ("spread", 6, ".1f"),
    "rows_per_s": ("rows/s", 11, ",.0f"),
    "slower": ("slower", 7, ".1%"),
}


def speed(size: int, dim: int, us: float | None, prefix: str = "") -> dict[str, float]:
    """Keys per second, and bytes of rows read and written per second."""
    if us is None:
        return {}
    gkeys = size / us / 1e3
    return {f"{prefix}gkeys": gkeys, f"{prefix}gbytes": gkeys * dim * 8}


class Report:
    """Prints rows as they come; keeps them for the file."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.wrong = 0
        self._section = ""
        self._columns: tuple[str, ...] = ()

    def begin(self, section: str, *columns: str) -> None:
        self._section, self._columns = section, columns
        titles = (f"{COLUMNS[c][0]:{self._align(c)}{abs(COLUMNS[c][1])}}" for c in columns)
        print("  " + " ".join(titles).rstrip(), flush=True)

    def row(self, *, wrong: int | None = None, **values: Any) -> None:
        """Prints a row; `wrong` is the number of wrong rows, None if none were checked."""
        if wrong is not None:
            self.wrong += wrong
            values["check"] = "ok" if wrong == 0 else f"{wrong:,} WRONG"
        cells = (self._cell(column, values.get(column)) for column in self._columns)
        print("  " + " ".join(cells).rstrip(), flush=True)
        self.rows.append({"section": self._section, **values})

    def write(self, path: Path, about: dict[str, str]) -> None:
        columns = ["section", *COLUMNS, *about]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows({**row, **about} for row in self.rows)

    @staticmethod
    def _align(column: str) -> str:
        return "<" if COLUMNS[column][1] < 0 else ">"

    def _cell(self, column: str, value: Any) -> str:
        _, width, form = COLUMNS[column]
        text = "-" if value is None else format(value, form)
        return f"{text:{self._align(column)}{abs(width)}}"
