"""Tables larger than the cache: misses answered exactly; and many tables one after the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import gpu_workload as workload
import torch
import torch.nn.functional as functional
from gpu_hits import Bench, cached_store
from gpu_measure import (
    checked,
    elapsed_us,
    host_us,
    measure,
    occupy,
    pairs,
    poison,
    queued,
    speed,
    spread,
    wrong_rows,
)
from gpu_store import Store, Table

UNTIMED, TIMED = 8, 50
#: Steps after those that are not timed, until the cache has settled; and the pause after each, in
#: which it takes in the rows that were missed.
MIN_SETTLING, MAX_SETTLING, PAUSE_S = 3, 20, 0.1
#: Percent of the keys by which a cache that still fills finds more than some steps before.
PROGRESS = 0.1
COLUMNS = (
    *("system", "dim", "rows", "keys", "age_s", "settling", "t_us", "spread", "p99_us"),
    *("queued_us", "queued_spread", "gkeys", "hit", "hit_min", "ideal", "missed", "missed_rate"),
    *("on_ssd", "ratio", "check"),
)


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]


def steps_us(call: Callable[[torch.Tensor], object], batches: list[torch.Tensor]) -> list[float]:
    """Time on the GPU of each call, queued behind other work; the host waits after each."""
    times = []
    for batch in batches:
        events = pairs(1)
        occupy()
        events[0][0].record()
        call(batch)
        events[0][1].record()
        times += elapsed_us(events)
    return times


class Step(NamedTuple):
    """One lookup, its time and what the cache had of it, in percent."""

    us: float
    hit: float
    #: What a cache of the hottest rows would have had.
    ideal: float
    #: Seconds since the store was opened.
    age_s: float


class Steps:
    """Looks up one batch after the other."""

    def __init__(self, store: Store, table: Table) -> None:
        self._store, self._table = store, table
        self.rows: torch.Tensor | None = None
        self._counts = store.counts()

    def take(self, ranks: torch.Tensor, keys: torch.Tensor) -> Step:
        """The rows are in `rows` until the next step."""
        self.rows = None
        age_s = self._store.age_s

        def look_up(batch: torch.Tensor) -> None:
            self.rows = self._store.lookup(batch)

        us = steps_us(look_up, [keys])[0]
        before, self._counts = self._counts, self._store.counts()
        hit = self._counts.since(before).hit_rate or 0.0
        ideal = float((ranks < self._table.cached).double().mean())
        return Step(us, 100 * hit, 100 * ideal, age_s)


def settle(steps: Steps, table: Table, draw: Callable[[int], torch.Tensor], first: int) -> int:
    """Looks up further batches until the cache finds no more of them; returns how many.

    Draws differ, so that each is compared with what a cache of the hottest rows would find.
    """
    short: list[float] = []
    while len(short) < MAX_SETTLING:
        ranks = draw(first + len(short))
        step = steps.take(ranks, table.keys[ranks])
        short.append(step.ideal - step.hit)
        time.sleep(PAUSE_S)
        if len(short) >= MIN_SETTLING and short[-1] > short[-MIN_SETTLING] - PROGRESS:
            break
    return len(short)


def tell_outliers(steps: list[Step], most: int = 5) -> None:
    """Prints the steps that took much longer than others, or of which the cache had much less."""
    usual_us = statistics.median(step.us for step in steps)
    usual_short = statistics.median(step.ideal - step.hit for step in steps)
    outliers = [
        (number, step)
        for number, step in enumerate(steps)
        if step.us > 1.5 * usual_us or step.ideal - step.hit > usual_short + 1
    ]
    for number, step in sorted(outliers, key=lambda outlier: -outlier[1].us)[:most]:
        print(
            f"    step {number} of {len(steps)}: {step.us:,.1f} us, {step.hit:.2f} % found (a cache"
            f" of the hottest rows: {step.ideal:.2f} %), {step.age_s:.3f} s after opening"
        )
    if len(outliers) > most:
        print(f"    {len(outliers)} such steps")


def missing_row(
    bench: Bench,
    store: Store,
    table: Table,
    drawn: str,
    draw: Callable[[int], torch.Tensor],
    counts: tuple[int, int],
) -> None:
    """One row of a table with misses.

    Args:
        bench: What all sections share.
        store: Serves the whole table, a tenth of it from the cache.
        table: The table.
        drawn: Names the draw.
        draw: The ranks of a step.
        counts: Steps that are not timed, then those that are. As many follow that are enqueued
            back to back. Between the first two, the cache settles.
    """
    untimed, timed = counts
    dim = table.dim
    ranks = [draw(step) for step in range(untimed + 2 * timed)]
    size = ranks[0].numel()
    keys = [table.keys[part] for part in ranks]
    wrong = checked(store.lookup, keys[0], dim)
    steps_us(store.lookup, keys[1:untimed])
    steps = Steps(store, table)
    settling = settle(steps, table, draw, len(ranks))
    before = store.counts()
    last = untimed + timed - 1
    taken: list[Step] = []
    for step in range(untimed, last + 1):
        if step == last:  # checked, too
            steps.rows = None
            poison(size, dim, bench.device)
        taken.append(steps.take(ranks[step], keys[step]))
    served = store.counts().since(before)
    wrong += wrong_rows(steps.rows, keys[last])
    steps.rows = None
    back_to_back = queued(store.lookup, keys[last + 1 :], timed)
    weight = table.resident
    base = steps_us(lambda batch: functional.embedding(batch, weight), ranks[: untimed + timed])
    base = base[untimed:]
    times = [step.us for step in taken]
    t_us, base_us = statistics.median(times), statistics.median(base)
    missed = (served.keys - served.gpu) / timed
    bench.report.row(
        system="F.embedding",
        drawn=drawn,
        dim=dim,
        rows=table.rows,
        keys=size,
        t_us=base_us,
        spread=spread(base),
        p99_us=percentile(base, 0.99),
        **speed(size, dim, base_us),
    )
    bench.report.row(
        system=f"{store.plan.kind}, 10 % cached",
        drawn=drawn,
        dim=dim,
        rows=table.rows,
        keys=size,
        age_s=taken[0].age_s,
        settling=settling,
        t_us=t_us,
        spread=spread(times),
        p99_us=percentile(times, 0.99),
        # From the first start to the last end would count the host's time of the first call.
        queued_us=statistics.fmean(back_to_back),
        queued_spread=spread(back_to_back, statistics.fmean),
        hit=100 * (served.hit_rate or 0.0),
        hit_min=min(step.hit for step in taken),
        ideal=statistics.fmean(step.ideal for step in taken),
        missed=missed,
        on_ssd=served.ssd / timed,
        missed_rate=missed / t_us,
        ratio=base_us / t_us,
        wrong=wrong,
        **speed(size, dim, t_us),
    )
    tell_outliers(taken)


def mixed(bench: Bench, table: Table) -> None:
    """Zipf over all rows, a tenth of them in the cache, every row exact."""
    bench.report.begin("mixed", *COLUMNS)
    for kind in ("dynamic", "uvm"):
        store = cached_store(bench, table, kind)
        for size in (16384, 1048576):

            def draw(step: int, size: int = size) -> torch.Tensor:
                name = workload.stream(table.dim, workload.MIXED, size, step)
                return table.zipf.ranks(workload.uniforms(name, size, bench.device))

            missing_row(bench, store, table, "Zipf", draw, (UNTIMED, TIMED))


def ssd(bench: Bench) -> None:
    """The same with a tenth of the rows on SSD alone: the host answers for them."""
    bench.report.begin("ssd", *COLUMNS)
    table = Table("ssd", 6_000_000 // bench.shrink, 32, bench.home, bench.device)
    try:
        store = bench.stores.open("dynamic", 0.1, table.files(table.rows), on_ssd=0.1)
        for size in (16384, 1048576):

            def draw(step: int, size: int = size) -> torch.Tensor:
                name = workload.stream(table.dim, workload.MIXED, size, step)
                return table.zipf.ranks(workload.uniforms(name, size, bench.device))

            missing_row(bench, store, table, "Zipf", draw, (UNTIMED, TIMED))
    finally:
        bench.stores.close()
        table.remove()


def nve(bench: Bench, table: Table) -> None:
    """The power law of nv-embedding-cache's benchmark: 262,144 keys, alpha 1.05, 10 % cached."""
    bench.report.begin("nve", *COLUMNS)
    size = 262_144

    def draw(step: int) -> torch.Tensor:
        name = workload.stream(table.dim, workload.POWER_LAW, size, step)
        u = workload.uniforms(name, size, bench.device)
        return workload.power_law_ranks(u, table.rows, 1.05)

    for kind in ("uvm", "dynamic"):  # `mixed` leaves the first open
        store = cached_store(bench, table, kind)
        missing_row(bench, store, table, "NVE-1", draw, (20, 100))


def latency(bench: Bench) -> None:
    """HPS's profiling example: 2,000 keys, alpha 1.2, 630,000 rows of dim 16; 10 % cached here."""
    columns = ("system", "drawn", "dim", "rows", "keys", "t_us", "spread", "p99_us", "wall_us")
    columns = (*columns, "wall_spread", "wall_p99_us", "over_empty_us", "hit", "ratio", "check")
    bench.report.begin("latency", *columns)
    table = Table("latency", 630_000, 16, bench.home, bench.device)
    size, untimed, rounds = 2_000, 100, 1_000
    try:
        name = workload.stream(16, workload.LATENCY, size, 0)
        count = untimed + 2 * rounds
        u = workload.uniforms(name, count * size, bench.device)
        ranks = list(workload.power_law_ranks(u, table.rows, 1.2).split(size))
        keys = [table.keys[part] for part in ranks]
        weight = table.resident
        for kind in ("dynamic", "uvm", "static"):
            store = (
                bench.stores.open("static", 1.0, table.files(table.rows))
                if kind == "static"
                else cached_store(bench, table, kind)
            )
            wrong = checked(store.lookup, keys[0], 16)
            for batch in keys[1:untimed]:
                store.lookup(batch)
            calls = {
                "empty kernel": lambda _: torch.cuda._sleep(0),  # noqa: SLF001
                "F.embedding": lambda batch: functional.embedding(batch, weight),
                kind: store.lookup,
            }
            before = store.counts()
            walls: dict[str, list[float]] = {system: [] for system in calls}
            gpus: dict[str, list[float]] = {system: [] for system in calls}
            for i in range(untimed, count, 2):
                for system, call in calls.items():
                    batches = ranks if system == "F.embedding" else keys
                    started = time.perf_counter()
                    call(batches[i])
                    torch.cuda.synchronize()
                    walls[system].append((time.perf_counter() - started) * 1e6)
                    gpus[system] += steps_us(call, [batches[i + 1]])
            served = store.counts().since(before)
            wrong += checked(store.lookup, keys[-1], 16)
            medians = {system: statistics.median(times) for system, times in walls.items()}
            base = statistics.median(gpus["F.embedding"])
            for system in calls:
                ours = system == kind
                t_us = statistics.median(gpus[system])
                bench.report.row(
                    system=f"{kind}, 10 % cached" if ours and kind != "static" else system,
                    drawn="a = 1.2",
                    dim=16,
                    rows=table.rows,
                    keys=size,
                    t_us=t_us,
                    spread=spread(gpus[system]),
                    p99_us=percentile(gpus[system], 0.99),
                    wall_us=medians[system],
                    wall_spread=spread(walls[system]),
                    wall_p99_us=percentile(walls[system], 0.99),
                    over_empty_us=medians[system] - medians["empty kernel"],
                    hit=100 * (served.hit_rate or 0.0) if ours else None,
                    ratio=base / t_us if ours else None,
                    wrong=wrong if ours else None,
                )
    finally:
        bench.stores.close()
        table.remove()


def many_tables(bench: Bench) -> None:
    """26 layers one after the other, 1,024 keys each, dim 64, against 26 calls of F.embedding."""
    columns = ("system", "dim", "rows", "keys", "t_us", "spread", "g1_us", "g1_spread", "g16_us")
    columns = (*columns, "g16_spread", "gkeys", "g16_gkeys", "host_us", "host_spread", "hit")
    columns = (*columns, "ratio", "g16_ratio", "check")
    bench.report.begin("tables", *columns)
    count, rows, dim, size = 26, 100_000, 64, 1024
    tables = [Table(f"many{i}", rows, dim, bench.home, bench.device) for i in range(count)]
    try:
        store = bench.stores.open("static", 1.0, *(table.files(rows) for table in tables))
        layers = [store.layer(i) for i in range(count)]
        weights = [table.resident for table in tables]
        ranks: list[list[torch.Tensor]] = []
        for batch in range(workload.BATCHES):
            names = (
                workload.stream(dim, workload.MANY_TABLES, size, batch << 8 | i)
                for i in range(count)
            )
            draws = (workload.uniforms(name, size, bench.device) for name in names)
            ranks.append([workload.uniform_positions(u, rows) for u in draws])
        keys = [
            [table.keys[part] for table, part in zip(tables, parts, strict=True)] for parts in ranks
        ]

        def ours(parts: list[torch.Tensor]) -> list[torch.Tensor]:
            return [layer(part) for layer, part in zip(layers, parts, strict=True)]

        def theirs(parts: list[torch.Tensor]) -> list[torch.Tensor]:
            return [functional.embedding(p, w) for p, w in zip(parts, weights, strict=True)]

        wrong = sum(checked(layer, part, dim) for layer, part in zip(layers, keys[0], strict=True))
        before = [store.counts(i) for i in range(count)]
        base, times = measure(theirs, ranks), measure(ours, keys)
        served = [store.counts(i).since(before[i]) for i in range(count)]
        hit_rate = sum(part.gpu for part in served) / max(sum(part.keys for part in served), 1)
        for system, found, call, batches in (
            ("26 F.embedding", base, theirs, ranks),
            ("26 LookupLayers, static", times, ours, keys),
        ):
            mine = found is times
            on_host = host_us(call, batches, calls=50)
            ratios = {"ratio": base.t_us / times.t_us, "g16_ratio": base.g16_us / times.g16_us}
            bench.report.row(
                system=system,
                dim=dim,
                rows=count * rows,
                keys=count * size,
                host_us=statistics.median(on_host),
                host_spread=spread(on_host),
                hit=100 * hit_rate if mine else None,
                wrong=wrong if mine else None,
                **found.columns(),
                **(ratios if mine else {}),
                **speed(count * size, dim, found.t_us),
                **speed(count * size, dim, found.g16_us, "g16_"),
            )
    finally:
        bench.stores.close()
        for table in tables:
            table.remove()
