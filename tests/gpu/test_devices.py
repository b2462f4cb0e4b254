"""Which GPUs serve a model; everything that is wrong with a call is named."""

import unittest
from concurrent.futures import ThreadPoolExecutor

import torch

import hps_torch
from gpu.common import DEVICE, each_arrangement, message_of, size
from gpu.tables import Table, assert_rows, random_keys, seeded

needs_two = unittest.skipIf(torch.cuda.device_count() < 2, "needs two GPUs")
ROWS = size(3_000, 200)


@each_arrangement(tiers=("host",))
class Devices:
    def test_a_gpu_that_does_not_exist_is_named_when_opening(self):
        table = Table(torch.arange(50), 8)
        missing = torch.cuda.device_count()
        store = self.make_store(table, deployed_device_list=[missing])
        for devices in ([missing], [0, missing]):
            store.change(deployed_device_list=devices)
            message = message_of(store.open, hps_torch.HpsError)
            assert "deployed_device_list" in message, message
            assert str(missing) in message, message
            keys = torch.arange(5, device=DEVICE)
            assert "deployed_device_list" in message_of(lambda: store.lookup(keys))  # noqa: B023
        store.change(deployed_device_list=[0])
        self.check(store, torch.arange(60))

    @needs_two
    def test_a_gpu_that_is_not_deployed_is_named(self):
        table = Table(torch.arange(50), 8)
        store = self.make_store(table, deployed_device_list=[0])
        message = message_of(lambda: store.lookup(torch.arange(5, device="cuda:1")))
        assert "cuda:1" in message, message
        assert "deployed_device_list" in message, message
        self.check(store, torch.arange(60))

    @needs_two
    def test_several_gpus_serve_at_once(self):
        table = Table(random_keys(ROWS), 32)
        devices = range(torch.cuda.device_count())
        store = self.make_store(table, deployed_device_list=[*devices], gpucacheper=0.1)
        store.open()

        def work(number: int) -> None:
            generator = seeded(number)
            device = torch.device("cuda", number % len(devices))
            for _ in range(size(20, 4)):
                # The current device stays what it is: the keys say where.
                keys = table.sample(400, generator).to(device)
                assert_rows(store.lookup(keys), keys, table)

        with ThreadPoolExecutor(2 * len(devices)) as pool:
            assert list(pool.map(work, range(2 * len(devices))))
        assert torch.cuda.current_device() == 0


@each_arrangement()
class WrongCalls:
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.store = cls.make_class_store(Table(torch.arange(ROWS), 8))
        cls.short = cls.make_class_store(Table(torch.arange(ROWS), 8, key_bits=32))
        cls.keys = torch.arange(4).to(DEVICE)

    def tearDown(self):
        # Usable after each of them.
        self.check(self.store, torch.arange(-3, 20))
        self.check(self.short, torch.arange(-3, 20, dtype=torch.int32))

    def fails(self, keys: torch.Tensor, *arguments: object, store=None) -> str:
        path = (store or self.store).path
        return message_of(lambda: torch.ops.hps.lookup(keys, path, *arguments))

    def test_an_unknown_model_is_named_with_those_that_exist(self):
        message = self.fails(self.keys, "modle", 0, 8)
        assert '"modle"' in message, message
        assert '"model"' in message, message

    def test_a_table_that_does_not_exist_is_named(self):
        for table_id in (-1, 1, 1 << 40):
            message = self.fails(self.keys, "model", table_id, 8)
            assert str(table_id) in message, message

    def test_another_vector_size_is_named(self):
        for dim in (7, 9, 16, 0, -8, 1 << 62):
            message = self.fails(self.keys, "model", 0, dim)
            assert f"emb_vec_size is {dim}" in message, message
            assert "8" in message, message
            assert "embedding_vecsize_per_table" in message, message

    def test_keys_of_the_other_width_name_the_setting(self):
        message = self.fails(self.keys.int(), "model", 0, 8)
        assert "int32" in message, message
        assert '"supportlonglong": true' in message, message
        message = self.fails(self.keys, "model", 0, 8, store=self.short)
        assert "int64" in message, message
        assert '"supportlonglong": false' in message, message

    def test_keys_of_another_type_are_named(self):
        for dtype in (torch.float32, torch.bool, torch.uint8, torch.int16, torch.bfloat16):
            message = self.fails(self.keys.to(dtype), "model", 0, 8)
            assert str(dtype).removeprefix("torch.") in message, message
            assert "int64" in message, message

    def test_sparse_keys_are_an_error(self):
        keys = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.tensor([3, 4]), (5,))
        assert "dense" in self.fails(keys.to(DEVICE), "model", 0, 8)

    def test_an_empty_batch_is_checked_like_any_other(self):
        empty = torch.empty((0, 3), dtype=torch.int64, device=DEVICE)
        assert "modle" in self.fails(empty, "modle", 0, 8)
        assert "emb_vec_size is 9" in self.fails(empty, "model", 0, 9)

    def test_a_failed_lookup_counts_nothing(self):
        added = self.store.counts_of(lambda: self.fails(self.keys, "model", 0, 9))
        assert not any(added.values()), added
