"""A configuration of one model with one table, as the measurements of the CPU path open it."""

from __future__ import annotations

import json
from pathlib import Path

#: The model's name.
MODEL = "bench"


def write_config(path: Path, table: str | Path, dim: int, **sections: dict[str, object]) -> str:
    """Writes the ps.json of a table whose model files are in a folder; returns its path.

    sections: ``volatile_db``, ``persistent_db`` and whatever else the configuration has.
    """
    model = {
        "model": MODEL,
        "sparse_files": [str(table)],
        "embedding_vecsize_per_table": [dim],
        "maxnum_catfeature_query_per_table_per_sample": [1],
        "default_value_for_each_table": [0.0],
        "deployed_device_list": [0],
    }
    path.write_text(json.dumps({"supportlonglong": True, **sections, "models": [model]}))
    return str(path)
