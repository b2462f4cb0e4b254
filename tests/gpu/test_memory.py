"""GPU memory: given back when a store closes, refused with the sum when there is too little."""

import re
from pathlib import Path

import torch

import hps_torch
from gpu.common import DEVICE, each_arrangement, error_of, message_of, size
from gpu.tables import Table, random_keys, seeded

MIB = 1 << 20
CYCLES = size(20, 3)


def free_memory() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(DEVICE)[0]


def resident_memory() -> int:
    """Returns the bytes of host memory that this process has."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+) kB", status)[1]) * 1024


@each_arrangement(tiers=("host",))
class Memory:
    def test_opening_and_closing_again_and_again_keeps_nothing(self):
        # 40 MiB of rows: a single one left behind in four cycles is noticed.
        dim = size(512, 64)
        table = Table(random_keys(20_480), dim)
        store = self.make_store(table, gpucacheper=1.0)
        keys = table.sample(1_000, seeded(1)).to(DEVICE)

        def cycle() -> None:
            store.open()
            store.lookup(keys)
            hps_torch.close(store.path)

        # The kernels themselves stay loaded.
        cycle()
        free, resident = free_memory(), resident_memory()
        for _ in range(CYCLES):
            cycle()
        lost = free - free_memory()
        assert lost <= 64 * MIB, f"{lost / MIB:.0f} MiB of GPU memory lost in {CYCLES} cycles"
        grown = resident_memory() - resident
        assert grown <= 256 * MIB, f"{grown / MIB:.0f} MiB of host memory lost in {CYCLES} cycles"

        store.open()
        held = free - free_memory()
        wanted = 20_480 * dim * 4
        assert held >= wanted * 0.9, f"{held / MIB:.0f} MiB held: rows are not on the GPU"
        self.check(store, table.sample(1_000, seeded(2)))

    def test_an_open_that_fails_keeps_nothing(self):
        good = Table(random_keys(20_480), size(256, 64))
        store = self.make_store(good, Table(torch.arange(100), 4), gpucacheper=1.0)
        broken = Path(store.path).parent / "tables" / "1" / "emb_vector"
        whole = broken.read_bytes()
        store.open()
        hps_torch.close(store.path)
        free = free_memory()
        broken.write_bytes(whole[:-3])
        for _ in range(CYCLES):
            message_of(store.open, hps_torch.HpsError)
        lost = free - free_memory()
        assert lost <= 64 * MIB, f"{lost / MIB:.0f} MiB of GPU memory lost"
        broken.write_bytes(whole)
        self.check(store, good.sample(1_000, seeded(2)))


@each_arrangement(caches=("dynamic", "uvm"))
class TooLarge:
    def test_a_cache_that_does_not_fit_is_refused_with_the_sum(self):
        table = Table(random_keys(2_000), 128)
        # A terabyte.
        store = self.make_store(table, gpucacheper=1_000_000.0)
        free = free_memory()
        for _ in range(3):
            message = message_of(store.open, hps_torch.HpsError)
            # What would be needed and what there is.
            amounts = re.findall(r"\d[\d.,_]*\s*(?:[KMGT]i?B|bytes)", message)
            assert len(amounts) >= 2, message
            assert "gpucacheper" in message, message
            keys = torch.arange(5, device=DEVICE)
            assert "gpucacheper" in message_of(lambda: store.lookup(keys))  # noqa: B023
        code = error_of(store.open, hps_torch.HpsError).code
        assert code == hps_torch.ErrorCode.OUT_OF_MEMORY, code
        lost = free - free_memory()
        assert lost <= 64 * MIB, f"{lost / MIB:.0f} MiB of GPU memory lost"

        store.change(gpucacheper=0.5)
        for seed in range(3):
            self.check(store, table.sample(500, seeded(seed)))

    def test_another_store_keeps_serving_when_one_is_refused(self):
        table = Table(random_keys(2_000), 32)
        store = self.make_store(table, gpucacheper=0.1)
        other = self.make_store(table, gpucacheper=10_000_000.0)
        self.check(store, table.sample(500, seeded(1)))
        message_of(other.open, hps_torch.HpsError)
        self.check(store, table.sample(500, seeded(2)))
