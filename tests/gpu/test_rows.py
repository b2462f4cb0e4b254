"""Every looked-up row is the row that was saved, bit for bit, whatever the keys look like."""

import torch

from gpu.common import ALL_TIERS, DEVICE, each_arrangement, size
from gpu.tables import EXTREMES, INT32, INT64, Table, assert_rows, random_keys, seeded

DIMS = (1, 2, 3, 4, 16, 31, 32, 64, 100, 128, 160, 1024)
BATCHES = [0, 1, 2, 7, 8, 9, 31, 32, 33, 1_000] + size([4_097, 70_001], [])
SHAPES = [(), (1,), (7,), (0,), (3, 5), (0, 3), (2, 0), (2, 3, 4), (2, 1, 3, 1, 2)]
ROWS = size(3_000, 200)


def dense() -> torch.Tensor:
    return torch.arange(ROWS)


def holes() -> torch.Tensor:
    """Returns small keys in no order, a third of those below the largest."""
    return torch.randperm(3 * ROWS, generator=seeded(1))[:ROWS]


def hashed() -> torch.Tensor:
    return random_keys(ROWS)


KINDS = (dense, holes, hashed)


@each_arrangement(tiers=ALL_TIERS)
class Rows:
    """Tables of all dims, with dense, sparse and random keys, in one store."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        tables = [Table(KINDS[i % 3](), dim, default=i - 0.75) for i, dim in enumerate(DIMS)]
        tables += [Table(kind(), dim, default=7) for kind in KINDS for dim in (32, 128)]
        cls.batch_tables = range(len(DIMS), len(tables))
        cls.store = cls.make_class_store(*tables)

    def setUp(self):
        self.generator = seeded(5)

    def test_every_key_of_tables_of_every_dim(self):
        for table_id, table in enumerate(self.store.tables):
            with self.subTest(dim=table.dim, first=table.keys[0]):
                order = torch.randperm(len(table), generator=self.generator)
                self.check(self.store, table.keys[order], table_id)

    def test_unknown_keys_yield_the_default_row(self):
        for table_id, table in enumerate(self.store.tables):
            with self.subTest(dim=table.dim, first=table.keys[0]):
                strangers = torch.cat([torch.tensor(EXTREMES), random_keys(50, seed=9)])
                near = torch.cat([table.keys + 1, table.keys - 1, ~table.keys])[:500]
                self.check(self.store, torch.cat([strangers, near]), table_id)
                self.check(self.store, table.sample(500, self.generator, unknown=0.5), table_id)

    def test_nothing_but_unknown_keys(self):
        for table_id in self.batch_tables:
            keys = random_keys(300, seed=77)
            self.check(self.store, keys, table_id)
            # A default row is not kept as if it had been found.
            self.check(self.store, keys, table_id)

    def test_batches_of_any_size(self):
        for table_id in self.batch_tables:
            for count in BATCHES:
                with self.subTest(table_id=table_id, count=count):
                    keys = self.store.tables[table_id].sample(count, self.generator)
                    self.check(self.store, keys, table_id)

    def test_keys_of_any_shape(self):
        for table_id in (0, 4, 7, *self.batch_tables):
            table = self.store.tables[table_id]
            for shape in SHAPES:
                with self.subTest(dim=table.dim, shape=shape):
                    count = torch.Size(shape).numel()
                    keys = table.sample(count, self.generator).reshape(shape)
                    self.check(self.store, keys, table_id)

    def test_keys_that_are_not_contiguous(self):
        for table_id in self.batch_tables:
            table = self.store.tables[table_id]
            keys = table.sample(240, self.generator).reshape(20, 12).to(DEVICE)
            views = {
                "transposed": keys.t(),
                "strided": keys[::2, 1::3],
                "column": keys[:, 4],
                "row at an offset": keys[3],
                "at an odd offset": keys.reshape(-1)[1:],
                "expanded": keys[:1, :1].expand(5, 6),
                "overlapping": keys.unfold(1, 4, 2),
                "permuted": keys.reshape(4, 5, 12).permute(2, 0, 1),
                "empty and strided": keys[5:5, ::2],
            }
            for name, view in views.items():
                with self.subTest(dim=table.dim, view=name):
                    self.check(self.store, view, table_id)

    def test_repeated_keys_get_a_row_each_time(self):
        for table_id in self.batch_tables:
            table = self.store.tables[table_id]
            one = table.keys[17:18].repeat(size(5_000, 300))
            few = table.keys[torch.randint(3, (1_000,), generator=self.generator)]
            unknown = random_keys(1, seed=3).repeat(400)
            for keys in (one, few, unknown, torch.cat([unknown, one, few])):
                self.check(self.store, keys, table_id)

    def test_the_same_keys_again(self):
        for table_id in self.batch_tables:
            keys = self.store.tables[table_id].sample(400, self.generator)
            for _ in range(5):
                self.check(self.store, keys, table_id)

    def test_rows_belong_to_the_caller(self):
        table_id = self.batch_tables[0]
        table = self.store.tables[table_id]
        keys = table.keys[:200].to(DEVICE)
        rows = self.store.lookup(keys, table_id)
        assert not rows.requires_grad
        assert rows.is_contiguous()
        rows.zero_()
        self.check(self.store, keys, table_id)

    def test_cpu_keys_of_the_same_store_are_served_on_the_cpu(self):
        for table_id in (3, *self.batch_tables):
            table = self.store.tables[table_id]
            keys = table.sample(300, self.generator)
            assert_rows(self.store.lookup(keys, table_id), keys, table)

    def test_the_predecessors_name_of_the_operator(self):
        table_id = self.batch_tables[0]
        table = self.store.tables[table_id]
        keys = table.sample(100, self.generator).to(DEVICE)
        lookup = torch.ops.hps_torch.hps_embedding_lookup
        rows = lookup(keys, self.store.path, "model", table_id, table.dim)
        assert_rows(rows, keys, table)


@each_arrangement()
class LegalKeys:
    """No 64-bit value stands for an empty place."""

    def test_extreme_keys_are_found(self):
        borders = [
            s * (1 << b) + d for b in (16, 31, 48, 60, 62) for d in (-1, 0, 1) for s in (1, -1)
        ]
        keys = torch.tensor(sorted({*EXTREMES, *borders}))
        store = self.make_store(Table(keys, 8), Table(keys, 33))
        for table_id in range(2):
            self.check(store, keys, table_id)
            self.check(store, torch.cat([keys, keys.flip(0), keys + 5]), table_id)

    def test_extreme_keys_are_missed(self):
        wanted = [INT64.min, -1, 0, INT64.max]
        # Every one alone is absent, from a table of few rows and from one of many.
        tables = [
            Table(torch.tensor([key for key in [*wanted, 1, *more] if key != absent]), 4)
            for absent in wanted
            for more in ([], range(2, 300))
        ]
        store = self.make_store(*tables)
        for table_id in range(len(tables)):
            self.check(store, torch.tensor(wanted).repeat(3), table_id)

    def test_tables_may_be_tiny(self):
        tables = [Table(torch.arange(rows), 5) for rows in (1, 2, 9, 10, 15, 16, 17)]
        store = self.make_store(*tables)
        for table_id, table in enumerate(tables):
            self.check(store, torch.arange(-1, len(table) + 1), table_id)

    def test_the_last_row_of_a_repeated_key_counts(self):
        store = self.make_store(Table(torch.tensor([4, 9, 4, 1, 9, 4]), 8))
        self.check(store, torch.tensor([4, 9, 1, 2]))


@each_arrangement()
class ShortKeys:
    """32-bit keys (`"supportlonglong": false`) are read as unsigned."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        unsigned = [0, 1, 5, INT32.max, 1 << 31, 0xFFFFFFFF]
        negative = [-2, -77, INT32.min + 9]
        spread = torch.randint(1 << 32, (ROWS,), generator=seeded(8))
        tables = [
            Table(torch.tensor(unsigned + negative), 8, key_bits=32),
            Table(torch.arange(ROWS), 32, default=2.5, key_bits=32),
            Table(spread, 128, key_bits=32),
        ]
        cls.store = cls.make_class_store(*tables)

    def test_extreme_keys(self):
        limits = [0, 1, 5, INT32.max, INT32.min, -1, -2, -77, INT32.min + 9, 1234, -1234]
        for table_id in range(3):
            self.check(self.store, torch.tensor(limits, dtype=torch.int32), table_id)

    def test_every_key(self):
        for table_id, table in enumerate(self.store.tables):
            self.check(self.store, table.keys.to(torch.int32), table_id)

    def test_batches_of_any_size_and_place(self):
        generator = seeded(6)
        for table_id, table in enumerate(self.store.tables):
            for count in BATCHES:
                with self.subTest(table_id=table_id, count=count):
                    keys = table.sample(count + 1, generator).to(DEVICE)
                    self.check(self.store, keys[1:], table_id)
                    self.check(self.store, keys.expand(2, -1).t(), table_id)
