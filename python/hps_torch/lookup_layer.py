"""The layer that takes the place of ``torch.nn.Embedding`` in a served model.

Archives of the predecessor name this class ``hps_torch.lookup_layer.LookupLayer``: the
module must keep its name.
"""

import operator
import os

import torch


class LookupLayer(torch.nn.Module):
    """Looks up embedding vectors in one table of a ``ps.json``.

    The layer holds no parameters, only the four arguments as attributes of the same names,
    and can be scripted, traced, exported, compiled and pickled. Nothing is opened before
    the first call. Rows are constants: no gradient flows into them.

    TorchScript treats the lookup as a pure function: keys must be inputs of the model. Keys
    that are constants are looked up once by ``torch.jit.freeze`` and their rows baked in.

    Args:
        ps_config_file: Path of the ``ps.json``. It is saved with the model; where it does
            not exist, ``HPS_CONFIG_DIR`` and ``HPS_CONFIG_FILE`` say where to look.
        model_name: A model of that configuration.
        table_id: Position of the table in the model's ``sparse_files``.
        emb_vec_size: Length of the table's rows, as in ``embedding_vecsize_per_table``.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: ``table_id`` is negative or ``emb_vec_size`` is not positive.
    """

    ps_config_file: str
    model_name: str
    table_id: int
    emb_vec_size: int

    def __init__(
        self,
        ps_config_file: str | os.PathLike[str],
        model_name: str,
        table_id: int,
        emb_vec_size: int,
    ) -> None:
        super().__init__()
        path = os.fspath(ps_config_file)
        if not isinstance(path, str):
            raise TypeError(f"ps_config_file must be a str or a path, found {type(path).__name__}")
        if not isinstance(model_name, str):
            raise TypeError(f"model_name must be a str, found {type(model_name).__name__}")
        self.ps_config_file = path
        self.model_name = model_name
        self.table_id = operator.index(table_id)
        self.emb_vec_size = operator.index(emb_vec_size)
        if self.table_id < 0:
            raise ValueError(f"table_id must not be negative, found {self.table_id}")
        if self.emb_vec_size <= 0:
            raise ValueError(f"emb_vec_size must be positive, found {self.emb_vec_size}")

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        """Returns float32 rows of shape ``keys.shape + (emb_vec_size,)``.

        Args:
            keys: int64 or int32 keys of any shape, as ``supportlonglong`` says.
        """
        rows: torch.Tensor = torch.ops.hps.lookup(
            keys, self.ps_config_file, self.model_name, self.table_id, self.emb_vec_size
        )
        return rows

    def extra_repr(self) -> str:
        """Returns what ``print(model)`` shows of the layer."""
        return (
            f"{self.ps_config_file!r}, model_name={self.model_name!r}, "
            f"table_id={self.table_id}, emb_vec_size={self.emb_vec_size}"
        )
