"""save_table and load_table keep every bit, and a reader never sees half a table."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import hps_torch
from conftest import INT64, dense_table, random_bits
from hps_torch import tables
from oracle import same_bits

INTEGER_TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64] + [
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


def test_a_table_comes_back_bit_for_bit(tmp_path: Path):
    table = dense_table(1_000, 33)
    hps_torch.save_table(tmp_path / "a" / "b" / "table", table.keys, table.vectors)

    keys, vectors = hps_torch.load_table(tmp_path / "a" / "b" / "table")

    assert keys.dtype == torch.int64
    assert torch.equal(keys, table.keys)
    assert same_bits(vectors, table.vectors)


def test_the_files_are_the_predecessors_format(tmp_path: Path):
    keys = torch.tensor([1, -1, INT64.min])
    vectors = torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, float("inf")]])
    hps_torch.save_table(tmp_path / "table", keys, vectors)

    assert sorted(os.listdir(tmp_path / "table")) == ["emb_vector", "key"]
    key_bytes = (tmp_path / "table" / "key").read_bytes()
    assert key_bytes == (1).to_bytes(8, "little") + b"\xff" * 8 + bytes(7) + b"\x80"
    vector_bytes = (tmp_path / "table" / "emb_vector").read_bytes()
    assert vector_bytes == np.array([1, -2, 0.5, 0, 3, np.inf], "<f4").tobytes()


@pytest.mark.parametrize("dtype", INTEGER_TYPES, ids=str)
def test_keys_may_be_of_any_integer_type(tmp_path: Path, dtype: torch.dtype):
    info = torch.iinfo(dtype)
    values = [info.min, info.min + 1, 5, info.max - 1, info.max]
    as_int64 = [v - (1 << 64) if v > INT64.max else v for v in values]
    tensor = torch.tensor(as_int64).to(dtype)
    array = np.array(values, dtype=str(dtype).removeprefix("torch."))
    for keys in (tensor, array):
        hps_torch.save_table(tmp_path / "table", keys, torch.zeros(5, 1))
        assert hps_torch.load_table(tmp_path / "table")[0].tolist() == as_int64


def test_arrays_may_be_views_of_any_order(tmp_path: Path):
    vectors = random_bits(6, 4)
    array = vectors.numpy()
    keys = torch.arange(6)
    same = {
        "transposed": vectors.t().contiguous().t(),
        "strided": torch.stack([vectors, vectors], dim=1)[:, 1],
        "expanded parameter": torch.nn.Parameter(vectors),
        "numpy": array,
        "numpy, fortran order": np.asfortranarray(array),
        "numpy, read backwards": array[::-1].copy()[::-1],
        "numpy, big-endian": array.view("i4").byteswap().view(">f4"),
    }
    for name, given in same.items():
        hps_torch.save_table(tmp_path / "table", keys, given)
        assert same_bits(hps_torch.load_table(tmp_path / "table")[1], vectors), name
    for given in (keys.repeat_interleave(2)[::2], keys.numpy()[::-1].copy()[::-1]):
        hps_torch.save_table(tmp_path / "table", given, vectors)
        assert torch.equal(hps_torch.load_table(tmp_path / "table")[0], keys)


def test_an_embedding_is_saved_as_it_is(tmp_path: Path):
    embedding = torch.nn.Embedding(20, 8)
    hps_torch.save_table(tmp_path / "table", torch.arange(20), embedding.weight)

    assert same_bits(hps_torch.load_table(tmp_path / "table")[1], embedding.weight.detach())


def test_large_tables_are_written_in_pieces(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tables, "_CHUNK_BYTES", 1_000)
    table = dense_table(1_000, 7)
    hps_torch.save_table(tmp_path / "table", table.keys, table.vectors)

    keys, vectors = hps_torch.load_table(tmp_path / "table")
    assert torch.equal(keys, table.keys)
    assert same_bits(vectors, table.vectors)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tables_are_saved_from_a_gpu(tmp_path: Path):
    table = dense_table(100)
    hps_torch.save_table(tmp_path / "table", table.keys.cuda(), table.vectors.cuda())

    assert same_bits(hps_torch.load_table(tmp_path / "table")[1], table.vectors)


K, V = torch.arange(3), torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("keys", "vectors", "error", "said"),
    [
        (K.float(), V, TypeError, "keys must be of an integer type, found torch.float32"),
        (K.bool(), V, TypeError, "keys must be of an integer type"),
        (K.numpy().astype("f8"), V, TypeError, "keys must be of an integer type, found float64"),
        ([0, 1, 2], V, TypeError, "keys must be a torch.Tensor or a numpy array, found list"),
        (K, [[0.0]] * 3, TypeError, "vectors must be a torch.Tensor or a numpy array"),
        (K, V.double(), TypeError, "vectors must be float32, found torch.float64"),
        (K, V.half(), TypeError, "vectors must be float32, found torch.float16"),
        (K, V.bfloat16(), TypeError, "vectors must be float32, found torch.bfloat16"),
        (K, V.numpy().astype("f8"), TypeError, "vectors must be float32, found float64"),
        (K, V.long(), TypeError, "vectors must be float32, found torch.int64"),
        (K, V.to_sparse(), TypeError, "dense"),
        (K[None], V, ValueError, r"keys must have one dimension, found shape \(1, 3\)"),
        (torch.tensor(1), V, ValueError, "keys must have one dimension"),
        (K, V[0], ValueError, r"vectors must have two dimensions, found shape \(2,\)"),
        (K, V[None], ValueError, "vectors must have two dimensions"),
        (K[:2], V, ValueError, "one row per key, found 2 keys and 3 rows"),
        (K[:0], V[:0], ValueError, "must not be empty"),
        (K, V[:, :0], ValueError, "must not be empty"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, keys, vectors, error, said: str):
    with pytest.raises(error, match=said):
        hps_torch.save_table(tmp_path / "table", keys, vectors)
    assert os.listdir(tmp_path) == []


def test_replacing_a_table_leaves_nothing_behind(tmp_path: Path):
    for rows in (10, 3, 20):
        table = dense_table(rows, rows)
        hps_torch.save_table(tmp_path / "table", table.keys, table.vectors)
        assert same_bits(hps_torch.load_table(tmp_path / "table")[1], table.vectors)
    assert os.listdir(tmp_path) == ["table"]


def test_files_of_training_go_with_the_table_they_belong_to(tmp_path: Path):
    hps_torch.save_table(tmp_path / "table", K, V)
    (tmp_path / "table" / "slot_id").write_bytes(bytes(24))

    hps_torch.save_table(tmp_path / "table", K, V)

    assert sorted(os.listdir(tmp_path / "table")) == ["emb_vector", "key"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        hps_torch.save_table(tmp_path, K, V)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_not_replaced(tmp_path: Path):
    (tmp_path / "table").write_text("mine")

    with pytest.raises(NotADirectoryError, match="table"):
        hps_torch.save_table(tmp_path / "table", K, V)
    assert (tmp_path / "table").read_text() == "mine"


def test_an_empty_folder_and_a_link_may_be_saved_to(tmp_path: Path):
    (tmp_path / "real").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        hps_torch.save_table(tmp_path / "link", K, V)

    assert (tmp_path / "link").is_symlink()
    assert torch.equal(hps_torch.load_table(tmp_path / "real")[0], K)


def test_a_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch):
    old = dense_table(10)
    hps_torch.save_table(tmp_path / "table", old.keys, old.vectors)

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        hps_torch.save_table(tmp_path / "table", K, V)

    assert os.listdir(tmp_path) == ["table"]
    assert same_bits(hps_torch.load_table(tmp_path / "table")[1], old.vectors)


def test_a_file_system_without_exchange_is_served_in_two_steps(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tables, "_exchange", lambda *_: False)
    for rows in (10, 3):
        table = dense_table(rows)
        hps_torch.save_table(tmp_path / "table", table.keys, table.vectors)
        assert same_bits(hps_torch.load_table(tmp_path / "table")[1], table.vectors)
    assert os.listdir(tmp_path) == ["table"]


def test_readers_see_one_table_or_the_other(tmp_path: Path):
    # Keys and rows of one table carry the same number; sizes differ from table to table.
    def save(number: int) -> None:
        rows = 50 + number % 3
        hps_torch.save_table(
            tmp_path / "table",
            torch.full((rows,), number),
            torch.full((rows, 4), float(number)),
        )

    save(0)
    stop = threading.Event()
    seen: list[bool] = []

    def read() -> None:
        while not stop.is_set():
            keys, vectors = hps_torch.load_table(tmp_path / "table")
            number = int(keys[0])
            seen.append(
                bool((keys == number).all())
                and bool((vectors == number).all())
                and len(keys) == 50 + number % 3
            )

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 150):
        save(number)
    stop.set()
    for reader in readers:
        reader.join()

    assert len(seen) > 50
    assert all(seen)


def test_killing_the_writer_leaves_one_table_or_the_other(tmp_path: Path):
    script = (
        "import sys, torch, hps_torch\n"
        "for number in range(1, 10**6):\n"
        "    rows = torch.full((5000, 8), float(number))\n"
        "    hps_torch.save_table(sys.argv[1], torch.full((5000,), number), rows)\n"
        "    if number == 1: print('ready', flush=True)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "table")], stdout=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()

    keys, vectors = hps_torch.load_table(tmp_path / "table")
    assert len(keys) == 5_000
    assert (keys == keys[0]).all()
    assert (vectors == float(keys[0])).all()


def test_a_loaded_table_outlives_its_files(tmp_path: Path):
    table = dense_table(5_000, 16)
    hps_torch.save_table(tmp_path / "table", table.keys, table.vectors)
    keys, vectors = hps_torch.load_table(tmp_path / "table")

    hps_torch.save_table(tmp_path / "table", K, V)
    shutil.rmtree(tmp_path / "table")

    assert torch.equal(keys, table.keys)
    assert same_bits(vectors, table.vectors)


def test_changing_a_loaded_table_does_not_change_the_files(tmp_path: Path):
    hps_torch.save_table(tmp_path / "table", K, V)
    keys, vectors = hps_torch.load_table(tmp_path / "table")
    keys.fill_(9)
    vectors.fill_(9.0)

    again = hps_torch.load_table(tmp_path / "table")
    assert torch.equal(again[0], K)
    assert torch.equal(again[1], V)


@pytest.mark.parametrize("missing", ["key", "emb_vector", ""])
def test_loading_names_what_is_missing(tmp_path: Path, missing: str):
    hps_torch.save_table(tmp_path / "table", K, V)
    path = tmp_path / "table" / missing
    if missing:
        path.unlink()
    else:
        shutil.rmtree(path)

    with pytest.raises(FileNotFoundError, match=str(path).rstrip("/")):
        hps_torch.load_table(tmp_path / "table")


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("key", 23, "key: 23 bytes, expected a positive multiple of 8"),
        ("key", 0, "key: 0 bytes"),
        ("emb_vector", 0, "emb_vector: 0 bytes"),
        ("emb_vector", 22, "emb_vector: 22 bytes, expected a positive multiple of 4"),
        ("emb_vector", 20, "emb_vector: 5 float32 values cannot be shared out among the 3 keys"),
        ("key", 32, "emb_vector: 6 float32 values cannot be shared out among the 4 keys"),
    ],
)
def test_loading_names_files_that_do_not_fit(tmp_path: Path, name: str, size: int, said: str):
    hps_torch.save_table(tmp_path / "table", K, V)
    (tmp_path / "table" / name).write_bytes(bytes(size))

    with pytest.raises(ValueError, match=said):
        hps_torch.load_table(tmp_path / "table")
