"""Reads and writes embedding tables in the format that ``sparse_files`` names.

A table is a directory with two files, without headers and little-endian::

    key         N int64                 the keys, 8 bytes each whatever supportlonglong says
    emb_vector  N x D float32           row i belongs to key i

Other files that training leaves there (``slot_id``, ``meta``) are not read.
"""

import contextlib
import ctypes
import errno
import os
import pathlib
import secrets
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import torch

if TYPE_CHECKING:
    import numpy as np

KEY_FILE = "key"
VECTOR_FILE = "emb_vector"

#: Files that may be in a table's directory: ours, and those of the predecessor's training.
_TABLE_FILES = frozenset({KEY_FILE, VECTOR_FILE, "slot_id", "meta"})

#: Bytes converted and written at a time: the memory that saving a table needs.
_CHUNK_BYTES = 16 << 20

# renameat2(2), which neither os nor ctypes names.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

# numpy is not needed unless the caller brings its arrays.
Array: TypeAlias = Union[torch.Tensor, "np.ndarray[Any, Any]"]


def save_table(directory: str | os.PathLike[str], keys: Array, vectors: Array) -> None:
    """Writes a table, replacing the one in ``directory`` if there is one.

    Both files are written and synced to disk in a new directory beside the old one, and
    the directories change places: ``directory`` holds the old table or the new one at any
    moment, never a mixture and never part of one, also after a crash. Where the file
    system cannot exchange two directories in one step (NFS, some container overlays),
    ``directory`` is missing for a moment while it is replaced. A reader that opens the two
    files by path while the table is replaced can still get one of each: stop or re-open
    readers after replacing a table, as a store only reads its tables when it opens.

    A process killed while it writes leaves ``.<name>.<random>.tmp`` beside ``directory``.

    Args:
        directory: Where the table goes; parents are created. Every file in it belongs to
            the table, so one that holds anything else is refused.
        keys: One-dimensional, of any integer type. They are stored as int64; uint64 keys
            from 2**63 up as the negative number with the same bits. Of equal keys, the
            last row wins when the table is loaded.
        vectors: Two-dimensional float32, one row per key. Other types are refused rather
            than rounded: what is served is what was given, bit for bit.

    Raises:
        TypeError: An argument is not a tensor or array of the right type.
        ValueError: The shapes do not fit together, or the table is empty.
        FileExistsError: ``directory`` holds files that are not a table's.
        OSError: Writing failed; the old table is still there.
    """
    _check_table(keys, vectors)
    # A symbolic link keeps pointing at the table.
    target = pathlib.Path(os.path.realpath(directory))
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir()
    try:
        _write(temporary / KEY_FILE, _chunks(keys, 8), torch.int64)
        _write(temporary / VECTOR_FILE, _chunks(vectors, 4 * vectors.shape[1]), torch.float32)
        _sync(temporary)
        _move_into_place(temporary, target)
        _sync(target.parent)
    finally:
        # The new directory if something failed, the replaced one if not.
        shutil.rmtree(temporary, ignore_errors=True)


def load_table(directory: str | os.PathLike[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps a table into memory.

    Pages are read when they are touched, so a table larger than memory can be opened. The
    tensors may be changed; the files are not. They keep the table that was there when it
    was opened, even if :func:`save_table` replaces it.

    Args:
        directory: A directory with the files ``key`` and ``emb_vector``.

    Returns:
        int64 keys of shape ``(N,)`` and float32 vectors of shape ``(N, D)``, as tensors.

    Raises:
        FileNotFoundError: The directory or one of its files is missing.
        ValueError: The sizes of the files do not fit together; names the file and numbers.
    """
    path = pathlib.Path(directory)
    while True:
        # Both files through one handle of the directory: a pair, even while it is replaced.
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            keys = _map(path, KEY_FILE, handle, torch.int64)
            values = _map(path, VECTOR_FILE, handle, torch.float32)
            break
        except FileNotFoundError:
            if _is_still(path, handle):
                raise
        finally:
            os.close(handle)
    rows = len(keys)
    if len(values) % rows != 0:
        raise ValueError(
            f"{path / VECTOR_FILE}: {len(values)} float32 values cannot be shared out among "
            f"the {rows} keys of {path / KEY_FILE}"
        )
    return keys, values.reshape(rows, -1)


def _check_table(keys: Array, vectors: Array) -> None:
    for name, array in (("keys", keys), ("vectors", vectors)):
        if not (isinstance(array, torch.Tensor) or _is_numpy(array)):
            raise TypeError(
                f"{name} must be a torch.Tensor or a numpy array, found {type(array).__name__}"
            )
        if isinstance(array, torch.Tensor) and array.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor, found layout {array.layout}")
    if not _is_integer(keys):
        raise TypeError(f"keys must be of an integer type, found {keys.dtype}")
    if not _is_float32(vectors):
        raise TypeError(
            f"vectors must be float32, found {vectors.dtype}: convert them first, so that it is "
            "plain which values are served"
        )
    if keys.ndim != 1:
        raise ValueError(f"keys must have one dimension, found shape {tuple(keys.shape)}")
    if vectors.ndim != 2:
        raise ValueError(f"vectors must have two dimensions, found shape {tuple(vectors.shape)}")
    if keys.shape[0] != vectors.shape[0]:
        raise ValueError(
            f"there must be one row per key, found {keys.shape[0]} keys and {vectors.shape[0]} rows"
        )
    if 0 in vectors.shape:
        raise ValueError(f"a table must not be empty, found vectors of {tuple(vectors.shape)}")


def _is_numpy(array: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(array, numpy.ndarray)


def _is_integer(keys: Array) -> bool:
    if isinstance(keys, torch.Tensor):
        return not (keys.is_floating_point() or keys.is_complex() or keys.dtype == torch.bool)
    return keys.dtype.kind in "iu"


def _is_float32(vectors: Array) -> bool:
    if isinstance(vectors, torch.Tensor):
        return vectors.dtype == torch.float32
    return bool(vectors.dtype.kind == "f") and vectors.dtype.itemsize == 4


def _check_replaceable(target: pathlib.Path) -> None:
    """Refuses to replace what is not a table."""
    if not target.exists():
        return
    if not target.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "a table is a directory, but this is a file", str(target)
        )
    others = sorted(entry.name for entry in target.iterdir() if entry.name not in _TABLE_FILES)
    if others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise FileExistsError(
            errno.EEXIST,
            "save_table replaces the whole directory, but it holds files that are not a "
            f"table's ({shown})",
            str(target),
        )


def _chunks(array: Array, row_bytes: int) -> Iterator[torch.Tensor]:
    """Yields the array as CPU tensors of bounded size."""
    step = max(1, _CHUNK_BYTES // row_bytes)
    for start in range(0, array.shape[0], step):
        part = array[start : start + step]
        if isinstance(part, torch.Tensor):
            yield part.detach().cpu()
        else:
            # torch takes neither foreign byte orders nor negative strides.
            yield torch.from_numpy(part.astype(part.dtype.newbyteorder("="), order="C"))


def _write(path: pathlib.Path, chunks: Iterator[torch.Tensor], dtype: torch.dtype) -> None:
    with path.open("xb") as file:
        for chunk in chunks:
            # uint64 wraps to the int64 with the same bits; every other type fits.
            values = chunk.to(dtype).resolve_neg().contiguous()
            # The tensor's memory as it is; `values` keeps it alive.
            file.write((ctypes.c_char * values.nbytes).from_address(values.data_ptr()))
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: pathlib.Path) -> None:
    """Makes the names in a directory durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move_into_place(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Gives ``temporary`` the name ``target``; what had it is then called ``temporary``."""
    try:
        temporary.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    else:
        return  # nothing was there, or an empty directory
    shutil.copymode(target, temporary)
    if _exchange(temporary, target):
        return
    # No exchange on this file system: two steps, with the old table kept until the last.
    old = temporary.with_name(f"{temporary.name}.old")
    target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    old.rename(temporary)


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Swaps two names in one step; False if the file system or the kernel cannot."""
    with contextlib.suppress(AttributeError):  # a C library without it
        library = ctypes.CDLL(None, use_errno=True)
        names = (os.fsencode(first), os.fsencode(second))
        if library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP):
            raise OSError(code, os.strerror(code), str(second))
    return False


def _map(path: pathlib.Path, name: str, handle: int, dtype: torch.dtype) -> torch.Tensor:
    """Maps one file of a table; changes to the tensor stay private."""
    try:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=handle)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            errno.ENOENT, "a table needs this file", str(path / name)
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        item = dtype.itemsize
        if size == 0 or size % item != 0:
            raise ValueError(f"{path / name}: {size} bytes, expected a positive multiple of {item}")
        # By its number: the path may name another file by now.
        opened = f"/proc/self/fd/{file.fileno()}"
        return torch.from_file(opened, shared=False, size=size // item, dtype=dtype)


def _is_still(path: pathlib.Path, handle: int) -> bool:
    """Tells whether a path still names the directory behind a handle."""
    return os.path.samestat(path.stat(), os.fstat(handle))
