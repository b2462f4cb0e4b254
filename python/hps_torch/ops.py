"""The operators under their Python names, and their fake kernels.

A fake kernel computes only the shape and type of the result. ``torch.compile`` and
``torch.export`` need it, and it is registered here, in Python, because one written in C++
cannot follow symbolic sizes.
"""

import os

import torch

#: Operators that share one signature and one meaning.
NAMES = ("hps::lookup", "hps_torch::hps_embedding_lookup")


def lookup(
    keys: torch.Tensor,
    ps_config_file: str | os.PathLike[str],
    model_name: str,
    table_id: int,
    emb_vec_size: int,
) -> torch.Tensor:
    """Looks up one embedding vector per key.

    Opens the store that ``ps_config_file`` describes if it is not open yet, which can take
    as long as loading its tables takes.

    Args:
        keys: int64 or int32 keys of any shape on the CPU, as the configuration's
            ``supportlonglong`` says. Any value is a legal key; a key that is in no tier
            yields the table's default row and is counted as missing.
        ps_config_file: Path of the ``ps.json``. A path that does not exist here is looked
            for by its name in ``HPS_CONFIG_DIR``, then ``HPS_CONFIG_FILE`` is taken.
        model_name: A model of that configuration.
        table_id: Position of the table in the model's ``sparse_files``.
        emb_vec_size: Length of the table's rows.

    Returns:
        float32 rows of shape ``keys.shape + (emb_vec_size,)``, bit-identical to those saved.

    Raises:
        RuntimeError: The arguments do not fit the configuration, or the store cannot be
            opened or read. The process and its other stores stay usable.
    """
    path = os.fspath(ps_config_file)
    rows: torch.Tensor = torch.ops.hps.lookup(keys, path, model_name, table_id, emb_vec_size)
    return rows


def _lookup_fake(
    keys: torch.Tensor,
    ps_config_file: str,  # noqa: ARG001 - the operator's signature
    model_name: str,  # noqa: ARG001
    table_id: int,  # noqa: ARG001
    emb_vec_size: int,
) -> torch.Tensor:
    if keys.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"hps::lookup: keys must be int64 or int32, found {keys.dtype}")
    if emb_vec_size <= 0:
        raise RuntimeError(f"hps::lookup: emb_vec_size must be positive, found {emb_vec_size}")
    return keys.new_empty((*keys.shape, emb_vec_size), dtype=torch.float32)


for _name in NAMES:
    # Override: the module may be loaded again, by importlib.reload or a notebook.
    torch.library.register_fake(_name, _lookup_fake, allow_override=True)
