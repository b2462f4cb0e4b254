"""Serve embedding tables that are larger than memory from PyTorch.

A model keeps its dense layers and replaces every ``torch.nn.Embedding`` by a
:class:`LookupLayer`. The rows then come from host memory and from SSD, as a
``ps.json`` file describes, and are bit-identical to the tables that were saved::

    import torch
    import hps_torch

    hps_torch.save_table("tables/item", keys, model.item.weight)
    model.item = hps_torch.LookupLayer("ps.json", "my_model", 0, 32)
    torch.jit.script(model).save("model.pt")

Importing the package loads ``libhps_torch.so``, which registers the operators
``torch.ops.hps.lookup`` and ``torch.ops.hps_torch.hps_embedding_lookup``. It opens no
store and starts no thread: a store opens at the first lookup, or with :func:`open`.
"""

from hps_torch import _library

_library.load()

# Everything below registers something on the operators that now exist.
from hps_torch.admin import (  # noqa: E402
    ErrorCode,
    HpsError,
    close,
    close_all,
    erase,
    open,  # noqa: A004 - `hps_torch.open` is the name users expect
    refresh,
    resolve,
    stats,
    update,
    version,
)
from hps_torch.lookup_layer import LookupLayer  # noqa: E402
from hps_torch.ops import lookup  # noqa: E402
from hps_torch.tables import load_table, save_table  # noqa: E402

library_path = _library.library_path

# The version is stated once, in Cargo.toml; the library carries it.
__version__ = version()

__all__ = [
    "ErrorCode",
    "HpsError",
    "LookupLayer",
    "__version__",
    "close",
    "close_all",
    "erase",
    "library_path",
    "load_table",
    "lookup",
    "open",
    "refresh",
    "resolve",
    "save_table",
    "stats",
    "update",
    "version",
]
