"""Table files that do not fit are errors that name the file and the numbers."""

from pathlib import Path

import pytest
import torch

import hps_torch
from conftest import StoreMaker, dense_table
from oracle import same_bits


@pytest.fixture
def store(make_store: StoreMaker, tiers: str):
    return make_store(dense_table(10, 8), tiers=tiers)


def opening_fails(store) -> str:
    with pytest.raises(hps_torch.HpsError) as caught:
        hps_torch.open(store.path)
    return str(caught.value)


def cut(path: Path, size: int) -> None:
    data = path.read_bytes()
    path.write_bytes((data + bytes(size))[:size])


@pytest.mark.parametrize("size", [0, 4, 316, 319, 321, 352, 640])
def test_vectors_that_do_not_fit_the_keys(store, size: int):
    path = store.table_folder() / "emb_vector"
    good = path.read_bytes()
    cut(path, size)

    message = opening_fails(store)

    assert str(path) in message
    assert f"{size} bytes" in message
    assert "320 bytes" in message
    path.write_bytes(good)
    keys = torch.arange(12)
    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


@pytest.mark.parametrize("size", [1, 7, 79, 81])
def test_a_key_file_that_is_no_whole_number_of_keys(store, size: int):
    path = store.table_folder() / "key"
    cut(path, size)

    message = opening_fails(store)
    assert str(path) in message
    assert f"{size} bytes" in message


def test_an_empty_key_file(store):
    path = store.table_folder() / "key"
    cut(path, 0)

    message = opening_fails(store)
    assert str(path) in message
    assert "empty" in message


def test_another_dim_than_configured_names_both(store):
    store.rewrite(lambda config: config["models"][0].update(embedding_vecsize_per_table=[4]))

    message = opening_fails(store)
    assert str(store.table_folder() / "emb_vector") in message
    assert "320 bytes" in message
    assert "160 bytes" in message
    assert "embedding_vecsize_per_table" in message


@pytest.mark.parametrize("name", ["key", "emb_vector"])
def test_a_missing_file_is_named(store, name: str):
    (store.table_folder() / name).unlink()

    message = opening_fails(store)
    assert f"`{name}`" in message
    assert "models[0].sparse_files[0]" in message


@pytest.mark.parametrize("name", ["key", "emb_vector"])
def test_a_folder_in_the_place_of_a_file(store, name: str):
    (store.table_folder() / name).unlink()
    (store.table_folder() / name).mkdir()

    assert name in opening_fails(store)


def test_files_of_training_beside_the_table_are_ignored(store):
    (store.table_folder() / "slot_id").write_bytes(bytes(80))
    (store.table_folder() / "meta").write_bytes(bytes(3))

    keys = torch.arange(12)
    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))


def test_keys_beyond_32_bits_in_32_bit_mode_are_an_error(make_store: StoreMaker):
    table = dense_table(10)
    table.keys[3] = 1 << 32
    store = make_store(table, supportlonglong=False)

    message = opening_fails(store)
    assert str(1 << 32) in message
    assert "supportlonglong" in message


def test_repeated_keys_are_counted_in_a_warning(make_store: StoreMaker, tiers: str, capfd):
    table = dense_table(10)
    table.keys[:] = torch.tensor([1, 2, 3, 1, 2, 1, 4, 5, 6, 7])
    store = make_store(table, tiers=tiers)
    keys = torch.arange(10)

    assert same_bits(store.lookup(keys), store.oracles[0].lookup(keys))
    assert "3 of 10 keys" in capfd.readouterr().err
