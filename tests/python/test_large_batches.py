"""Large batches are split among torch's threads; nobody can tell from the result."""

from collections.abc import Iterator

import pytest
import torch

import hps_torch
from conftest import StoreMaker, dense_table
from oracle import same_bits

#: Worth several threads, whatever the rows; no multiple of anything.
KEYS = 5 * 4096 + 7


@pytest.fixture(params=[1, 2, 5])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_rows_are_those_of_the_oracle(
    make_store: StoreMaker, tiers: str, num_threads: int, dtype: torch.dtype
):
    table = dense_table(3_000, default=0.25)
    store = make_store(table, tiers=tiers, supportlonglong=dtype == torch.int64)
    keys = torch.randint(-100, 3_100, (KEYS,), dtype=dtype)

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
    counted = store.stats()
    missing = int(((keys < 0) | (keys >= 3_000)).sum())
    assert counted["missing"] == missing
    assert counted["host_hits"] + counted["ssd_hits"] == KEYS - missing


def test_results_that_have_memory_of_their_own_are_whole(make_store: StoreMaker):
    # 41 MB: the pages behind them are new in each call, and large.
    store = make_store(dense_table(1_000, dim=512))
    keys = torch.randint(1_000, (KEYS,))

    for _ in range(3):
        assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


def test_an_error_of_one_thread_is_the_error_of_the_call(make_store: StoreMaker, num_threads: int):
    store = make_store(dense_table(30_000, dim=16), tiers="ssd")
    hps_torch.open(store.path)
    for file in (store.folder / "rocksdb").rglob("*.sst"):
        data = bytearray(file.read_bytes())
        data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        file.write_bytes(data)

    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"hps_et\.model.*[Cc]orrupt") as caught:
            store.lookup(torch.randint(30_000, (KEYS,)))
        assert "torch could not" not in str(caught.value)
