r"""A few lookups for a profiler to watch, or with --times the time of every kernel among them.

    python bench/gpu_profile.py [--times] hit|dynamic|uvm 128|32
    ncu --set full --kernel-name regex:lookup_ --launch-skip 3 --launch-count 1 \
        python bench/gpu_profile.py hit 128

hit: 1,048,576 uniform keys, all rows in GPU memory. dynamic, uvm: as many keys, Zipf over all
rows, a tenth of them in the cache. Tables and keys are those of gpu.py.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import gpu_workload as workload
import torch
from gpu_measure import occupy
from gpu_store import Stores, Table, load_library

SIZE, UNTIMED, STEPS = 1 << 20, 8, 40


def kernel_times(batches: list[torch.Tensor], store: object) -> dict[str, list[float]]:
    """Microseconds of each launch of each kernel."""
    times: dict[str, list[float]] = {}
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for batch in batches:
            occupy()
            store.lookup(batch)
            torch.cuda.synchronize()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times.setdefault(event.name, []).append(event.device_time)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("hit", "dynamic", "uvm"))
    parser.add_argument("dim", type=int, choices=tuple(workload.ROWS))
    parser.add_argument("--times", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    hps_torch = load_library()
    with tempfile.TemporaryDirectory(prefix="hps-profile-") as home, torch.inference_mode():
        stores = Stores(hps_torch, Path(home))
        rows = workload.ROWS[arguments.dim]
        table = Table("profile", rows, arguments.dim, Path(home), device)
        if arguments.kind == "hit":
            store = stores.open("static", 1.0, table.files(table.cached))
        else:
            store = stores.open(arguments.kind, table.cached / rows, table.files(rows))
        batches = []
        for step in range(UNTIMED + STEPS):
            name = workload.stream(table.dim, workload.MIXED, SIZE, step)
            u = workload.uniforms(name, SIZE, device)
            hit = arguments.kind == "hit"
            ranks = workload.uniform_positions(u, table.cached) if hit else table.zipf.ranks(u)
            batches.append(table.keys[ranks])
        for batch in batches[:UNTIMED]:
            store.lookup(batch)
        torch.cuda.synchronize()
        if arguments.times:
            for name, times in kernel_times(batches[UNTIMED:], store).items():
                median = statistics.median(times)
                print(f"{median:9.1f} us, at most {max(times):9.1f}, {len(times):3} x {name}")
        else:
            for batch in batches[UNTIMED : UNTIMED + 4]:
                store.lookup(batch)
            torch.cuda.synchronize()
        stores.close()


if __name__ == "__main__":
    main()
