"""Turns a trained model into what is served: tables, a ps.json, TorchScript archives."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import hps_torch
from dataset import Ratings
from recommender import DIMS, Recommender, Rows

MODEL_NAME = "movielens"

#: Maps positions in a table to the keys that the world outside uses.
Keys = Callable[[str, Tensor], Tensor]


@dataclasses.dataclass
class Published:
    """Files that together serve a model."""

    folder: Path
    keys: Keys

    @property
    def config(self) -> Path:
        """Returns the path of the ps.json."""
        return self.folder / "ps.json"

    @property
    def model(self) -> Path:
        """Returns the path of the scripted model."""
        return self.folder / "model.pt"

    @property
    def rows(self) -> Path:
        """Returns the path of the scripted module that returns the looked-up rows."""
        return self.folder / "rows.pt"

    def layers(self) -> dict[str, hps_torch.LookupLayer]:
        """Returns a lookup for each table."""
        return {
            name: hps_torch.LookupLayer(self.config, MODEL_NAME, table_id, dim)
            for table_id, (name, dim) in enumerate(DIMS.items())
        }

    def inputs(self, ratings: Ratings) -> list[Tensor]:
        """Returns the model's inputs with keys in the place of positions."""
        return [
            self.keys("user", ratings.user),
            self.keys("item", ratings.item),
            self.keys("genre", ratings.genres),
            ratings.genre_weights,
            self.keys("occupation", ratings.occupation),
            ratings.dense,
        ]


def publish(trained: Recommender, folder: Path, keys: Keys) -> Published:
    """Writes everything that serving needs."""
    published = Published(folder, keys)
    for name in DIMS:
        weight = getattr(trained, name).weight
        hps_torch.save_table(
            folder / "tables" / name, keys(name, torch.arange(len(weight))), weight
        )
    published.config.write_text(json.dumps(_config(), indent=2) + "\n")

    served = copy.deepcopy(trained)
    for name, layer in published.layers().items():
        setattr(served, name, layer)
    served.eval()
    torch.jit.script(served).save(str(published.model))
    torch.jit.script(Rows(served).eval()).save(str(published.rows))
    return published


def _config() -> dict[str, object]:
    return {
        "supportlonglong": True,
        # Half of every table in memory, all of it on disk. Rows found on disk stay there, so
        # that both keep serving; with "cache_missed_embeddings": true they would move up.
        "volatile_db": {
            "type": "parallel_hash_map",
            "initial_cache_rate": 0.5,
            "cache_missed_embeddings": False,
        },
        "persistent_db": {"type": "rocks_db", "path": "rocksdb"},
        "models": [
            {
                "model": MODEL_NAME,
                "sparse_files": [f"tables/{name}" for name in DIMS],
                "embedding_table_names": list(DIMS),
                "embedding_vecsize_per_table": list(DIMS.values()),
                "default_value_for_each_table": [0.0] * len(DIMS),
                "maxnum_catfeature_query_per_table_per_sample": [1, 1, 6, 1],
                "max_batch_size": 1024,
                "deployed_device_list": [0],
            }
        ],
    }


def ids_of_the_data_set(ids: dict[str, Tensor]) -> Keys:
    """Returns the ids that the data set itself uses, such as movie 242."""
    return lambda table, positions: ids[table][positions]


def hashed_ids(ids: dict[str, Tensor], bits: int) -> Keys:
    """Returns those ids hashed to so many bits, as is usual where ids are texts or sparse."""
    hashed = {table: _hash(of_table, bits) for table, of_table in ids.items()}
    for table, keys in hashed.items():
        if len(keys.unique()) != len(keys):
            raise ValueError(f"two ids of table {table} have the same hash")
    return lambda table, positions: hashed[table][positions]


def _hash(ids: Tensor, bits: int) -> Tensor:
    """The finaliser of SplitMix64: every bit of an id reaches every bit of its hash."""
    mask = (1 << 64) - 1
    hashes = []
    for value in ids.tolist():
        x = (value + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        hashes.append((x ^ (x >> 31)) >> (64 - bits))
    return torch.tensor(hashes)
