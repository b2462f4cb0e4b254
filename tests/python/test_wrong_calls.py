"""Whatever the predecessor answered with zeros or garbage is an error that says what to do.

The store stays usable after each of them.
"""

import pytest
import torch

import hps_torch
from conftest import StoreMaker
from oracle import same_bits


@pytest.fixture
def store(make_store: StoreMaker):
    store = make_store()
    yield store
    keys = torch.arange(-3, 20)
    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys)), "unusable afterwards"


def fails(*arguments: object, **named: object) -> str:
    """Looks up, both ways, and returns the message."""
    messages = []
    for operator in (torch.ops.hps.lookup, torch.ops.hps_torch.hps_embedding_lookup):
        with pytest.raises(RuntimeError) as caught:
            operator(*arguments, **named)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    # Where in our C++ it was found is nothing that a user can act on.
    assert ".cpp" not in messages[0]
    return messages[0]


KEYS = torch.arange(4)


def test_an_unknown_model_is_named_with_those_that_exist(store):
    message = fails(KEYS, store.path, "modle", 0, 8)
    assert '"modle"' in message
    assert '"model"' in message
    assert store.path in message


@pytest.mark.parametrize("table_id", [-1, 1, 1 << 40, -(1 << 63)])
def test_a_table_that_does_not_exist_is_an_error(store, table_id: int):
    message = fails(KEYS, store.path, "model", table_id, 8)
    assert str(table_id) in message
    assert "model" in message


@pytest.mark.parametrize("emb_vec_size", [7, 9, 16, 0, -8, 1 << 62])
def test_another_vector_size_is_an_error(store, emb_vec_size: int):
    message = fails(KEYS, store.path, "model", 0, emb_vec_size)
    assert f"emb_vec_size is {emb_vec_size}" in message
    assert "8" in message
    assert "embedding_vecsize_per_table" in message


def test_int32_keys_where_int64_is_configured_name_the_setting(store):
    message = fails(KEYS.int(), store.path, "model", 0, 8)
    assert "int32" in message
    assert '"supportlonglong": true' in message


def test_int64_keys_where_int32_is_configured_name_the_setting(make_store: StoreMaker):
    store = make_store(supportlonglong=False)
    message = fails(KEYS, store.path, "model", 0, 8)
    assert "int64" in message
    assert '"supportlonglong": false' in message
    keys = KEYS.int()
    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bool, torch.uint8, torch.int16, torch.bfloat16]
    + [torch.int8, torch.uint64],
)
def test_keys_of_another_type_are_named(store, dtype: torch.dtype):
    message = fails(torch.zeros(3, dtype=dtype), store.path, "model", 0, 8)
    assert "int64" in message
    assert "int32" in message
    assert str(dtype).removeprefix("torch.") in message


def test_sparse_keys_are_an_error(store):
    keys = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.tensor([3, 4]), (5,))
    assert "dense" in fails(keys, store.path, "model", 0, 8)


def test_an_empty_batch_is_checked_like_any_other(store):
    keys = torch.empty(0, dtype=torch.int64)
    assert "no-such-model" in fails(keys, store.path, "no-such-model", 0, 8)
    assert "nowhere.json" in fails(keys, "nowhere.json", "model", 0, 8)


def test_a_missing_configuration_lists_what_was_tried(store, monkeypatch, tmp_path):
    monkeypatch.setenv("HPS_CONFIG_DIR", str(tmp_path / "configs"))
    monkeypatch.delenv("HPS_CONFIG_FILE", raising=False)
    message = fails(KEYS, "/models/nowhere.json", "model", 0, 8)
    assert "/models/nowhere.json" in message
    assert str(tmp_path / "configs" / "nowhere.json") in message
    assert "HPS_CONFIG_FILE" in message


def test_keys_on_the_meta_device_get_a_shape_and_no_rows(store):
    rows = torch.ops.hps.lookup(KEYS.to("meta"), store.path, "model", 0, 8)
    assert (rows.device.type, rows.shape) == ("meta", (4, 8))


def test_arguments_of_other_types_are_refused_by_torch(store):
    with pytest.raises(RuntimeError, match="model_name"):
        torch.ops.hps.lookup(KEYS, store.path, 3, 0, 8)
    with pytest.raises((RuntimeError, TypeError)):
        hps_torch.lookup(KEYS, store.path, "model", "0", 8)
    with pytest.raises(TypeError):
        hps_torch.lookup(KEYS, None, "model", 0, 8)
