"""A small recommender: four embedding tables and a dense part."""

import torch
from torch import Tensor, nn

#: Length of each table's rows. The first element of a user's and an item's row is its bias.
DIMS = {"user": 32, "item": 32, "genre": 8, "occupation": 8}


class Recommender(nn.Module):
    """Predicts ratings. The four tables are any modules that map keys to rows."""

    def __init__(self, tables: dict[str, nn.Module], num_dense: int, mean: float) -> None:
        super().__init__()
        self.user = tables["user"]
        self.item = tables["item"]
        self.genre = tables["genre"]
        self.occupation = tables["occupation"]
        self.deep = nn.Sequential(
            nn.Linear(sum(DIMS.values()) + num_dense, 64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )
        self.mean = mean

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        genres: Tensor,
        genre_weights: Tensor,
        occupation: Tensor,
        dense: Tensor,
    ) -> Tensor:
        """Returns one rating per line; all tensors have one line per rating."""
        of_user, of_item = self.user(user), self.item(item)
        of_genres = (self.genre(genres) * genre_weights.unsqueeze(-1)).sum(dim=1)
        features = torch.cat(
            [of_user, of_item, of_genres, self.occupation(occupation), dense], dim=1
        )
        bias = of_user[:, 0] + of_item[:, 0]
        match = (of_user[:, 1:] * of_item[:, 1:]).sum(dim=1)
        return self.mean + bias + match + self.deep(features).squeeze(1)


class Rows(nn.Module):
    """Returns the rows that a :class:`Recommender` looks up, to compare them bit for bit."""

    def __init__(self, model: Recommender) -> None:
        super().__init__()
        self.user = model.user
        self.item = model.item
        self.genre = model.genre
        self.occupation = model.occupation

    def forward(
        self,
        user: Tensor,
        item: Tensor,
        genres: Tensor,
        genre_weights: Tensor,  # noqa: ARG002 - the same inputs as the model's
        occupation: Tensor,
        dense: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """Returns all rows of a line one after the other."""
        return torch.cat(
            [
                self.user(user),
                self.item(item),
                self.genre(genres).flatten(1),
                self.occupation(occupation),
            ],
            dim=1,
        )


def untrained(rows: dict[str, int], num_dense: int, mean: float) -> Recommender:
    """Returns a recommender with an ``nn.Embedding`` per table."""
    torch.manual_seed(0)
    tables: dict[str, nn.Module] = {}
    for name, dim in DIMS.items():
        tables[name] = embedding = nn.Embedding(rows[name], dim)
        nn.init.normal_(embedding.weight, std=0.05)
        if name in ("user", "item"):
            nn.init.zeros_(embedding.weight[:, 0].detach())
    return Recommender(tables, num_dense, mean)
