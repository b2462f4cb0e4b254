"""A refresh without GPUs has nothing to do, and says what is wrong all the same."""

import pytest
import torch

import hps_torch
from conftest import StoreMaker


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu covers machines with a GPU")
def test_without_gpus_no_key_is_looked_at(make_store: StoreMaker, tiers: str):
    store = make_store(tiers=tiers)
    before = store.lookup(torch.arange(100))

    assert hps_torch.refresh(store.path) == 0
    # As integers: tables hold NaN too.
    after = store.lookup(torch.arange(100))
    assert torch.equal(after.view(torch.int32), before.view(torch.int32))


def test_a_store_that_is_not_open_is_an_error(make_store: StoreMaker):
    store = make_store()
    store.lookup(torch.arange(3))
    hps_torch.close(store.path)
    with pytest.raises(hps_torch.HpsError, match="not open") as caught:
        hps_torch.refresh(store.path)
    assert caught.value.code == hps_torch.ErrorCode.NOT_FOUND
