"""After an error that ends the CUDA context, the GPU's stores say so and the CPU keeps serving."""

import json
import subprocess

from gpu.common import GpuTestCase, start_python

# Prints one JSON object per line, so that what came before a hang is known.
PROGRAM = """
import json, sys, time, torch
from gpu.common import Store, hps_torch
from gpu.tables import Table, assert_rows, random_keys, seeded

kind, cache = sys.argv[1:]
table = Table(random_keys(2_000), 32)
store = Store(table, cache=cache, tiers="host and ssd", gpucacheper=0.1)
other = Store(table, cache="static")
cpu_keys = table.sample(300, seeded(1))
gpu_keys = cpu_keys.to("cuda")
for opened in (store, other):
    for _ in range(3):
        assert_rows(opened.lookup(gpu_keys), gpu_keys, table)

def tell(name, call):
    started = time.monotonic()
    try:
        call()
        error = ""
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    seconds = time.monotonic() - started
    print(json.dumps({"name": name, "error": error, "seconds": seconds}), flush=True)

def plant_assert():
    torch.zeros(4, device="cuda")[torch.tensor([10**9], device="cuda")]

def plant_address():
    # A tensor over memory that is not there.
    nowhere = torch._C._construct_storage_from_data_pointer(1 << 46, gpu_keys.device, 4096)
    torch.empty(0, device="cuda").set_(nowhere, 0, (1024,), (1,)).add(1)

def plant():
    plant_assert() if kind == "assert" else plant_address()
    torch.cuda.synchronize()

def same_on_cpu(opened):
    assert_rows(opened.lookup(cpu_keys), cpu_keys, table)

tell("planted", plant)
for again in ("", " again"):
    tell("lookup" + again, lambda: store.lookup(gpu_keys))
    tell("other lookup" + again, lambda: other.lookup(gpu_keys))
    tell("cpu" + again, lambda: same_on_cpu(store))
    tell("other cpu" + again, lambda: same_on_cpu(other))
tell("stats", lambda: hps_torch.stats(store.path))
tell("close", lambda: hps_torch.close(store.path))
tell("open", lambda: hps_torch.open(store.path))
tell("close all", hps_torch.close_all)
tell("the end", lambda: None)
"""

RUNS = [("assert", "dynamic"), ("assert", "uvm"), ("address", "static"), ("address", "dynamic")]


class DeviceLost(GpuTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # All at once: the GPU outlives the context of each.
        cls.programs = {run: start_python(PROGRAM, *run) for run in RUNS}
        cls.reports = {run: cls.report_of(program) for run, program in cls.programs.items()}

    @classmethod
    def report_of(cls, program: subprocess.Popen[str]) -> tuple[dict, str]:
        try:
            output, _ = program.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            program.kill()
            output, _ = program.communicate()
            output += "\nkilled after 100 seconds"
        lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"name"')]
        return {line["name"]: line for line in lines}, output

    def report(self, run: tuple[str, str]) -> dict:
        """Returns what a program told, after making sure that its GPU was lost."""
        report, output = self.reports[run]
        assert "CUDA error" in report.get("planted", {}).get("error", ""), output
        assert "the end" in report, output
        return report

    def test_lookups_on_the_gpu_say_what_to_do(self):
        for run in RUNS:
            with self.subTest(run=run):
                report = self.report(run)
                for name in ("lookup", "other lookup", "lookup again", "other lookup again"):
                    error = report[name]["error"]
                    said = "device lost" in error.lower() or "restart the process" in error.lower()
                    assert said, f"{name}: {error or 'no error'}"

    def test_cpu_lookups_of_the_same_stores_still_work(self):
        for run in RUNS:
            with self.subTest(run=run):
                report = self.report(run)
                for name in ("cpu", "other cpu", "cpu again", "other cpu again", "stats"):
                    assert not report[name]["error"], report[name]

    def test_closing_does_not_hang(self):
        for run in RUNS:
            with self.subTest(run=run):
                report = self.report(run)
                for name in ("close", "close all", "open"):
                    assert report[name]["seconds"] < 20, report[name]
                assert not report["close"]["error"], report["close"]
                assert not report["close all"]["error"], report["close all"]
