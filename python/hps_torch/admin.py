"""Opening, closing, changing and watching stores, through the library's C interface (``hps.h``).

None of this is an operator: management inside a graph would be dropped by the compilers.
"""

import atexit
import ctypes
import enum
import json
import os
from typing import TYPE_CHECKING, TypedDict

from hps_torch import _library

if TYPE_CHECKING:
    import torch

Path = str | os.PathLike[str]


class ErrorCode(enum.IntEnum):
    """Why a call failed; the values of ``HPS_ERROR_*`` in ``hps.h``."""

    INVALID_ARGUMENT = 1
    CONFIG = 2
    NOT_FOUND = 3
    STORAGE = 4
    OUT_OF_MEMORY = 5
    CORRUPT = 6
    CLOSED = 7
    UNSUPPORTED = 8
    INTERNAL = 9
    DEVICE = 10


class HpsError(RuntimeError):
    """A management call failed.

    Attributes:
        code: Why, as an :class:`ErrorCode`.
    """

    code: ErrorCode

    def __init__(self, message: str, code: int = ErrorCode.INTERNAL) -> None:
        super().__init__(message)
        try:
            self.code = ErrorCode(code)
        except ValueError:
            self.code = ErrorCode.INTERNAL

    def __reduce__(self) -> tuple[type["HpsError"], tuple[str, int]]:
        # Keeps the code when the error crosses a process boundary.
        return (type(self), (str(self), int(self.code)))


class TierSize(TypedDict):
    """What one tier holds of one table."""

    rows: int
    bytes: int


class _TierSizes(TypedDict, total=False):
    gpu: TierSize
    host: TierSize
    ssd: TierSize


class TableStats(_TierSizes):
    """Counts of one table since its store was opened.

    ``keys == gpu_hits + host_hits + redis_hits + ssd_hits + missing`` always holds.
    ``gpu`` (of all devices together), ``host`` and ``ssd`` are there when that tier is configured.
    """

    table_id: int
    name: str
    storage_name: str
    dim: int
    keys: int
    gpu_hits: int
    host_hits: int
    redis_hits: int
    ssd_hits: int
    missing: int
    promoted: int
    promotions_dropped: int


class ModelStats(TypedDict):
    """Statistics of one model."""

    tables: list[TableStats]


class Stats(TypedDict):
    """Statistics of one store."""

    config: str
    models: dict[str, ModelStats]


def version() -> str:
    """Returns the version of the loaded library."""
    return str(_c.hps_version().decode())


def open(ps_config_file: Path) -> None:  # noqa: A001 - used as `hps_torch.open`
    """Opens the store of a configuration and loads its tables.

    Opening is optional, as the first lookup does it; it moves the wait, and any error in
    the configuration, to the start of the program. An open store is left as it is.

    Raises:
        HpsError: The configuration or a table is wrong. Nothing stays open; correct it and
            open again.
    """
    _check(_c.hps_open(_encode(ps_config_file)))


def close(ps_config_file: Path) -> None:
    """Waits for the lookups that are running in a store, then closes it.

    A later lookup opens the store again.

    Raises:
        HpsError: With ``ErrorCode.NOT_FOUND``: the store is not open.
    """
    _check(_c.hps_close(_encode(ps_config_file)))


def close_all() -> None:
    """Closes every store of this process; also done when Python exits."""
    _check(_c.hps_close_all())


def stats(ps_config_file: Path) -> Stats:
    """Returns what the tables of an open store have served and what they hold.

    Raises:
        HpsError: With ``ErrorCode.NOT_FOUND``: the store is not open.
    """
    text = ctypes.c_void_p()
    _check(_c.hps_stats(_encode(ps_config_file), ctypes.byref(text)))
    result: Stats = json.loads(_take_string(text))
    return result


def refresh(ps_config_file: Path) -> int:
    """Reads the rows that GPUs hold again from the tiers below, and overwrites them there.

    Tables that a GPU holds whole get new keys, too. For changes of a database that did not come
    through this process. Lookups go on meanwhile and see each row old or new. Returns the number
    of keys looked at: 0 without GPUs.

    Raises:
        HpsError: The store is not open, or a tier failed; what was refreshed before stays.
    """
    keys = ctypes.c_uint64()
    _check(_c.hps_refresh(_encode(ps_config_file), ctypes.byref(keys)))
    return keys.value


def update(
    ps_config_file: Path,
    model_name: str,
    table_id: int,
    keys: "torch.Tensor",
    rows: "torch.Tensor",
) -> None:
    """Adds rows to a table, or overwrites them, in the database and wherever they are cached.

    Lookups go on meanwhile; each row is seen old or new, whole. Lookups that begin after the call
    has returned see the new rows, and so do CUDA graphs that are replayed after, unless a warning
    has said that a GPU has no room for new keys. Two calls at once may take turns within. Opens
    the store if it is not open.

    Args:
        ps_config_file: Names the store.
        model_name: The model's name in the configuration.
        table_id: Position of the table in the model's configuration, from 0.
        keys: int64 or int32 tensor, as the configuration's ``supportlonglong`` says, of any
            shape. Of a repeated key the last row wins.
        rows: float32 tensor of shape ``(*keys.shape, dim)``. Tensors that are not contiguous in
            host memory are copied.

    Raises:
        HpsError: No such table; the database is read-only; a tier failed. Some of the keys may
            have their new row then.
        ValueError: A tensor has another dtype or shape; the table's number is negative.
    """
    import torch

    keys = _host_keys(keys)
    if rows.dtype != torch.float32 or rows.dim() == 0 or rows.shape[:-1] != keys.shape:
        found = f"{str(rows.dtype).removeprefix('torch.')} {tuple(rows.shape)}"
        raise ValueError(f"rows must be float32 of shape {(*keys.shape, 'dim')}, not {found}")
    rows = rows.detach().cpu().contiguous()
    _check(
        _c.hps_update(
            *_table(ps_config_file, model_name, table_id),
            rows.shape[-1],
            *(keys.data_ptr(), keys.element_size() * 8, keys.numel(), rows.data_ptr()),
        )
    )


def erase(ps_config_file: Path, model_name: str, table_id: int, keys: "torch.Tensor") -> None:
    """Removes keys from a table, in the same way as :func:`update`.

    Lookups then get the table's default row for them. Keys that are absent are ignored.

    Raises:
        HpsError: As for :func:`update`.
        ValueError: The keys are no integers.
    """
    keys = _host_keys(keys)
    _check(
        _c.hps_erase(
            *_table(ps_config_file, model_name, table_id),
            *(keys.data_ptr(), keys.element_size() * 8, keys.numel()),
        )
    )


def _table(ps_config_file: Path, model_name: str, table_id: int) -> tuple[bytes, bytes, int]:
    model = model_name.encode()
    if b"\0" in model:
        raise ValueError("model_name must not contain a null character")
    # ctypes would cut it to 64 bits and take another table.
    if not 0 <= table_id < 1 << 63:
        raise ValueError(f"table_id is {table_id}; tables are numbered from 0")
    return _encode(ps_config_file), model, table_id


def _host_keys(keys: "torch.Tensor") -> "torch.Tensor":
    import torch

    if keys.dtype not in (torch.int64, torch.int32):
        found = str(keys.dtype).removeprefix("torch.")
        raise ValueError(f"keys must be int64 or int32, not {found}")
    return keys.detach().cpu().contiguous()


def resolve(ps_config_file: Path) -> str:
    """Returns the canonical path of the configuration that a path stands for.

    The path itself if it exists; else its file name in ``HPS_CONFIG_DIR``; else
    ``HPS_CONFIG_FILE``.

    Raises:
        HpsError: None of these exists; the message lists what was tried.
    """
    path = ctypes.c_void_p()
    _check(_c.hps_resolve(_encode(ps_config_file), ctypes.byref(path)))
    return os.fsdecode(_take_string(path))


def _encode(ps_config_file: Path) -> bytes:
    encoded = os.fsencode(ps_config_file)
    if b"\0" in encoded:
        raise ValueError("ps_config_file must not contain a null character")
    return encoded


def _check(code: int) -> None:
    if code != 0:
        # The text belongs to this thread until its next call into the library.
        raise HpsError(_c.hps_last_error().decode(errors="replace"), code)


def _take_string(pointer: ctypes.c_void_p) -> bytes:
    """Copies a string that the library allocated and gives it back."""
    try:
        return ctypes.string_at(pointer.value or 0)
    finally:
        _c.hps_free_string(pointer)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """States the signatures of ``hps.h``; strings to be freed stay plain addresses."""
    string_out = ctypes.POINTER(ctypes.c_void_p)
    table = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64]
    keys = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    signatures: dict[str, tuple[list[type], type | None]] = {
        "hps_version": ([], ctypes.c_char_p),
        "hps_last_error": ([], ctypes.c_char_p),
        "hps_open": ([ctypes.c_char_p], ctypes.c_int),
        "hps_close": ([ctypes.c_char_p], ctypes.c_int),
        "hps_close_all": ([], ctypes.c_int),
        "hps_stats": ([ctypes.c_char_p, string_out], ctypes.c_int),
        "hps_refresh": ([ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64)], ctypes.c_int),
        "hps_resolve": ([ctypes.c_char_p, string_out], ctypes.c_int),
        "hps_update": ([*table, ctypes.c_int64, *keys, ctypes.c_void_p], ctypes.c_int),
        "hps_erase": ([*table, *keys], ctypes.c_int),
        "hps_free_string": ([ctypes.c_void_p], None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = result
    return library


def _close_at_exit(owner: int) -> None:
    # A forked child inherits this callback, but not the parent's stores.
    if os.getpid() == owner:
        _c.hps_close_all()


_c = _declare(_library.c_library())
atexit.register(_close_at_exit, os.getpid())
