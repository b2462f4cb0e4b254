"""What a refresh brings to the GPU while lookups go on."""

import threading
import time

import hps_torch
from gpu.common import ALL_TIERS, each_arrangement, size
from gpu.tables import Table, random_keys

ROWS = size(3_000, 200)


@each_arrangement(tiers=ALL_TIERS)
class Refresh:
    def test_rows_stay_right_and_every_key_that_is_held_is_looked_at(self):
        table = Table(random_keys(ROWS), 16)
        store = self.make_store(table, gpucacheper=0.5)
        self.check(store, table.keys)
        looked_at = hps_torch.refresh(store.path)
        assert 0 < looked_at <= ROWS
        self.check(store, table.keys)

    def test_lookups_go_on_meanwhile(self):
        table = Table(random_keys(ROWS), 64)
        store = self.make_store(table, gpucacheper=0.5)
        store.open()
        stopped = threading.Event()

        def refresh():
            while not stopped.is_set():
                hps_torch.refresh(store.path)

        thread = threading.Thread(target=refresh)
        thread.start()
        try:
            for _ in range(size(50, 5)):
                self.check(store, table.keys)
        finally:
            stopped.set()
            thread.join()

    def test_on_a_timer_rows_stay_right_and_closing_does_not_wait(self):
        table = Table(random_keys(ROWS), 16)
        store = self.make_store(table, gpucacheper=0.5, refresh_delay=0.01, refresh_interval=0.01)
        for _ in range(size(30, 5)):
            self.check(store, table.keys)
        started = time.perf_counter()
        hps_torch.close(store.path)
        assert time.perf_counter() - started < size(2, 20)
        self.check(store, table.keys)
