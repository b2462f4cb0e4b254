"""Rows that change while a store is open: in every tier, for good, and never seen in parts."""

import threading

import pytest
import torch

import hps_torch
from conftest import INT64, StoreMaker, dense_table, random_bits, table_of
from oracle import same_bits

DIM = 8


def check(store, keys: torch.Tensor, table_id: int = 0) -> None:
    assert same_bits(store.lookup(keys, table_id), store.oracles[table_id].lookup(keys))


def update(store, keys: torch.Tensor, rows: torch.Tensor, table_id: int = 0) -> None:
    hps_torch.update(store.path, store.model, table_id, keys, rows)
    store.oracles[table_id].update(keys, rows)


def erase(store, keys: torch.Tensor, table_id: int = 0) -> None:
    hps_torch.erase(store.path, store.model, table_id, keys)
    store.oracles[table_id].erase(keys)


def test_random_sequences_agree_with_the_oracle(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(300, DIM, default=0.5), tiers=tiers)
    generator = torch.Generator().manual_seed(7)
    for step in range(60):
        # Some of them new, some again and again.
        keys = torch.randint(-50, 400, (int(step * 7 % 90),), generator=generator)
        match step % 4:
            case 0:
                update(store, keys, random_bits(len(keys), DIM, seed=step))
            case 1:
                erase(store, keys)
            case _:
                check(store, keys)
    check(store, torch.arange(-60, 410))


def test_changes_outlive_the_store_where_there_is_an_ssd(make_store: StoreMaker, tiers: str):
    store = make_store(dense_table(100, DIM), tiers=tiers)
    update(store, torch.arange(90, 120), random_bits(30, DIM, seed=5))
    erase(store, torch.arange(10))
    check(store, torch.arange(130))
    hps_torch.close(store.path)
    if "ssd" not in tiers:
        # Memory forgets: the table is loaded from its files again.
        store.oracles[0].update(torch.arange(100), store.oracles[0].vectors)
        store.oracles[0].erase(torch.arange(100, 120))
    check(store, torch.arange(130))


def test_tensors_of_any_shape_and_layout(make_store: StoreMaker):
    store = make_store(dense_table(100, DIM))
    update(store, torch.tensor(5), random_bits(1, DIM).reshape(DIM))
    update(store, torch.arange(6).reshape(2, 3), random_bits(6, DIM).reshape(2, 3, DIM))
    update(store, torch.arange(20)[::3], random_bits(7 * 2, DIM)[::2])
    update(store, torch.empty(0, dtype=torch.int64), torch.empty(0, DIM))
    update(store, torch.tensor([INT64.min, -1, INT64.max]), random_bits(3, DIM, seed=3))
    update(store, torch.tensor([7, 8, 7]), torch.nn.Parameter(torch.randn(3, DIM)))
    erase(store, torch.empty(0, dtype=torch.int64))
    erase(store, torch.tensor([[50], [51]]))
    check(store, torch.cat([torch.arange(110), torch.tensor([INT64.min, -1, INT64.max])]))


def test_a_store_that_is_not_open_is_opened(make_store: StoreMaker):
    store = make_store(dense_table(100, DIM), tiers="ssd")
    update(store, torch.tensor([3]), random_bits(1, DIM, seed=3))
    hps_torch.close(store.path)
    erase(store, torch.tensor([4]))
    check(store, torch.arange(10))


def test_keys_of_32_bits(make_store: StoreMaker, tiers: str):
    table = table_of(torch.tensor([0, 1, 2**31, 2**32 - 1]), DIM)
    store = make_store(table, tiers=tiers, supportlonglong=False)
    keys = torch.tensor([-1, 5, 0], dtype=torch.int32)
    update(store, keys, random_bits(3, DIM, seed=9))
    erase(store, torch.tensor([1, -(2**31)], dtype=torch.int32))
    check(store, torch.tensor([0, 1, 5, -1, -(2**31)], dtype=torch.int32))


def test_fused_tables_share_what_was_changed(make_store: StoreMaker):
    tables = [table_of(torch.arange(i * 50, i * 50 + 50), DIM, default=i) for i in range(2)]
    store = make_store(*tables, top={"fuse_embedding_table": True})
    for oracle in store.oracles:
        for table in tables:
            oracle.update(table.keys, table.vectors)
    rows = random_bits(20, DIM, seed=4)
    update(store, torch.arange(40, 60), rows, table_id=0)
    store.oracles[1].update(torch.arange(40, 60), rows)
    for table_id in range(2):
        check(store, torch.arange(110), table_id)


def test_readers_see_whole_rows_while_they_are_overwritten(make_store: StoreMaker, tiers: str):
    keys = torch.arange(500)

    def rows_of(version: int) -> torch.Tensor:
        return (keys * 1000 + version).float()[:, None].expand(-1, DIM).contiguous()

    store = make_store(dense_table(500, DIM), tiers=tiers)
    hps_torch.update(store.path, store.model, 0, keys, rows_of(0))
    complete, problems = [0], []
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            oldest = complete[0]
            rows = store.lookup(keys)
            versions = rows[:, 0] - keys * 1000
            if not bool((rows == rows[:, :1]).all()) or int(versions.min()) < oldest:
                problems.append((oldest, versions))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(1, 40):
        hps_torch.update(store.path, store.model, 0, keys, rows_of(version))
        complete[0] = version
    stopped.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert torch.equal(store.lookup(keys), rows_of(39))


def test_wrong_calls_change_nothing_and_say_what_is_wrong(make_store: StoreMaker):
    store = make_store(dense_table(100, DIM))
    keys, rows = torch.arange(3), torch.zeros(3, DIM)

    def refused(kind: type[Exception], match: str, *arguments: object) -> None:
        with pytest.raises(kind, match=match):
            hps_torch.update(store.path, *arguments)

    refused(ValueError, "float64", "model", 0, keys, rows.double())
    refused(ValueError, r"\(3, 'dim'\)", "model", 0, keys, rows[:2])
    refused(ValueError, "float32", "model", 0, torch.tensor(1), torch.tensor(1.0)[None].int())
    refused(ValueError, "int64 or int32", "model", 0, keys.float(), rows)
    refused(hps_torch.HpsError, "vectors of 8", "model", 0, keys, rows[:, :4])
    refused(hps_torch.HpsError, "supportlonglong", "model", 0, keys.int(), rows)
    refused(hps_torch.HpsError, "no model", "another", 0, keys, rows)
    refused(hps_torch.HpsError, "table_id 7", "model", 7, keys, rows)
    refused(ValueError, "numbered from 0", "model", -1, keys, rows)
    refused(ValueError, "numbered from 0", "model", 1 << 64, keys, rows)
    refused(ValueError, "null character", "model\0", 0, keys, rows)
    with pytest.raises(hps_torch.HpsError, match="table_id 7"):
        hps_torch.erase(store.path, "model", 7, keys)
    with pytest.raises(ValueError, match="bool"):
        hps_torch.erase(store.path, "model", 0, keys > 1)
    check(store, torch.arange(110))


def test_a_read_only_database_is_left_alone(make_store: StoreMaker):
    store = make_store(dense_table(100, DIM), tiers="ssd")
    check(store, torch.arange(10))
    hps_torch.close(store.path)
    store.rewrite(lambda config: config["persistent_db"].update(read_only=True))
    with pytest.raises(hps_torch.HpsError) as caught:
        hps_torch.update(store.path, store.model, 0, torch.arange(3), torch.zeros(3, DIM))
    assert caught.value.code == hps_torch.ErrorCode.UNSUPPORTED
    with pytest.raises(hps_torch.HpsError, match="read"):
        hps_torch.erase(store.path, store.model, 0, torch.arange(3))
    check(store, torch.arange(110))
