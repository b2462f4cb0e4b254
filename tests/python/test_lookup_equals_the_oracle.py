"""Every looked-up row is the row that was saved, bit for bit, whatever the keys look like."""

import pytest
import torch

import hps_torch
from conftest import INT32, INT64, StoreMaker, Table, dense_table, random_bits, table_of
from oracle import same_bits

SHAPES = [(), (1,), (7,), (0,), (3, 5), (2, 0), (2, 3, 4), (0, 4, 5), (2, 1, 3, 1, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_keys_may_have_any_rank(make_store: StoreMaker, tiers: str, shape: tuple[int, ...]):
    store = make_store(dense_table(default=0.5), tiers=tiers)
    keys = torch.randint(-20, 120, shape)

    rows = store.lookup(keys)

    assert rows.shape == (*shape, 8)
    assert same_bits(rows, store.oracles[0].lookup(keys))


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 16, 33, 128, 1000])
def test_rows_may_have_any_length(make_store: StoreMaker, tiers: str, dim: int):
    store = make_store(dense_table(50, dim), tiers=tiers)
    keys = torch.randint(50, (200,))

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


def test_keys_need_not_be_contiguous(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    keys = torch.randint(100, (12, 10))
    views = [
        keys.t(),
        keys[::2, 1::3],
        keys[:, 4],
        keys[3],
        torch.tensor([[7]]).expand(5, 6),
        keys.flip(0),
        keys.unfold(1, 4, 2),
        keys.as_strided((3, 4), (1, 1)),
    ]
    for view in views:
        assert same_bits(store.lookup(view), store.oracles[0].lookup(view))


def test_repeated_keys_get_a_row_each_time(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    keys = torch.tensor([5] * 300 + [6, 5, 200, 200, 5])

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


def test_every_64_bit_value_is_a_legal_key(make_store: StoreMaker, tiers: str):
    extremes = [INT64.min, INT64.min + 1, -1, 0, 1, INT64.max - 1, INT64.max]
    borders = [s * (1 << b) + d for b in (31, 32, 60, 62) for d in (-1, 0, 1) for s in (1, -1)]
    keys = torch.tensor(extremes + borders)
    store = make_store(table_of(keys), tiers=tiers)

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
    assert store.stats()["missing"] == 0


@pytest.mark.parametrize("key", [INT64.min, -1, 0, INT64.max])
def test_no_64_bit_value_stands_for_an_empty_place(make_store: StoreMaker, tiers: str, key: int):
    others = torch.tensor([k for k in (INT64.min, -1, 0, 1, INT64.max) if k != key])
    store = make_store(table_of(others, default=3.5), tiers=tiers)
    keys = torch.cat([others, torch.tensor([key])])

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
    assert store.stats()["missing"] == 1


def test_int32_keys_are_read_as_unsigned(make_store: StoreMaker, tiers: str):
    # The files hold 64-bit keys: some as the unsigned number, some as the negative one.
    unsigned = [0, 1, 5, INT32.max, 1 << 31, (1 << 32) - 1]
    negative = [-2, -77, INT32.min + 9]
    store = make_store(
        table_of(torch.tensor(unsigned + negative)), tiers=tiers, supportlonglong=False
    )
    keys = torch.tensor(
        [0, 1, 5, INT32.max, INT32.min, -1, -2, -77, INT32.min + 9, 1234, -1234],
        dtype=torch.int32,
    )

    rows = store.lookup(keys)

    assert same_bits(rows, store.oracles[0].lookup(keys))
    assert store.stats()["missing"] == 2


def test_int32_minus_one_is_a_key_like_any_other(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(default=0.25), tiers=tiers, supportlonglong=False)
    keys = torch.tensor([-1, 3], dtype=torch.int32)

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


@pytest.mark.parametrize("num_rows", [1, 2, 9, 10, 11])
def test_tables_may_be_tiny(make_store: StoreMaker, tiers: str, num_rows: int):
    store = make_store(dense_table(num_rows), tiers=tiers)
    keys = torch.arange(-1, num_rows + 1)

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


def test_one_key_alone_is_found_in_its_partition(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    for key in range(100):
        keys = torch.tensor([key])
        assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


def test_the_last_row_of_a_repeated_key_counts(make_store: StoreMaker, tiers: str):
    keys = torch.tensor([4, 9, 4, 1, 9, 4])
    store = make_store(Table(keys, random_bits(6, 8)), tiers=tiers)

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


def test_large_batches_are_served_whole(make_store: StoreMaker, tiers: str):
    generator = torch.Generator().manual_seed(1)
    keys = torch.randint(INT64.min, INT64.max, (20_000,), generator=generator)
    store = make_store(table_of(keys, dim=4), tiers=tiers)
    # Far more than max_batch_size keys, about half of them unknown.
    asked = torch.cat([keys, keys + 1])[torch.randperm(40_000, generator=generator)]

    assert same_bits(store.lookup(asked), store.oracles[0].lookup(asked))


def test_both_names_of_the_operator_serve_the_same_rows(make_store: StoreMaker):
    store = make_store()
    keys = torch.arange(50)
    arguments = (keys, store.path, store.model, 0, 8)

    assert same_bits(
        torch.ops.hps_torch.hps_embedding_lookup(*arguments), torch.ops.hps.lookup(*arguments)
    )
    assert same_bits(hps_torch.lookup(*arguments), store.oracles[0].lookup(keys))


def test_arguments_may_be_given_by_name(make_store: StoreMaker):
    store = make_store()
    keys = torch.arange(5)

    rows = torch.ops.hps.lookup(
        keys=keys, ps_config_file=store.path, model_name="model", table_id=0, emb_vec_size=8
    )

    assert same_bits(rows, store.oracles[0].lookup(keys))


def test_rows_belong_to_the_caller(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    keys = torch.arange(100)

    store.lookup(keys).zero_()

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
    assert not store.lookup(keys).requires_grad


def test_tables_of_one_model_have_their_own_rows_and_dims(make_store: StoreMaker, tiers: str):
    tables = [dense_table(40, dim, default=dim, seed=dim) for dim in (4, 16, 8)]
    store = make_store(*tables, tiers=tiers)
    keys = torch.arange(-5, 60)

    for table_id, oracle in enumerate(store.oracles):
        assert same_bits(store.lookup(keys, table_id), oracle.lookup(keys))
