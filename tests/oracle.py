"""The plain truth that lookups are compared with: a dict and a loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


class Oracle:
    """One table, looked up as slowly and plainly as possible."""

    def __init__(self, keys: Tensor, vectors: Tensor, default: float, key_bits: int = 64) -> None:
        """Keeps the last row of every key.

        Args:
            keys: int64, shape (N,).
            vectors: float32, shape (N, dim).
            default: The value of every element of an unknown key's row.
            key_bits: 32 reads keys as the unsigned numbers with the same low 32 bits.
        """
        self.keys = keys
        self.vectors = vectors
        self.dim = vectors.shape[1]
        self.default_row = torch.full((self.dim,), default)
        self._mask = (1 << key_bits) - 1
        self._rows = {
            int(key) & self._mask: row for key, row in zip(keys.tolist(), vectors, strict=True)
        }

    def update(self, keys: Tensor, vectors: Tensor) -> None:
        """Adds or overwrites rows; of a repeated key the last one counts."""
        for key, row in zip(keys.reshape(-1).tolist(), vectors.reshape(-1, self.dim), strict=True):
            self._rows[key & self._mask] = row

    def erase(self, keys: Tensor) -> None:
        for key in keys.reshape(-1).tolist():
            self._rows.pop(key & self._mask, None)

    def __len__(self) -> int:
        return len(self._rows)

    def knows(self, key: int) -> bool:
        return (key & self._mask) in self._rows

    def lookup(self, keys: Tensor) -> Tensor:
        """Returns one row per key, of shape ``keys.shape + (dim,)``."""
        rows = [
            self._rows.get(key & self._mask, self.default_row) for key in keys.reshape(-1).tolist()
        ]
        if not rows:
            return torch.empty((*keys.shape, self.dim))
        return torch.stack(rows).reshape(*keys.shape, self.dim)

    def count_unknown(self, keys: Iterable[int]) -> int:
        return sum(not self.knows(key) for key in keys)


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Tells whether two float32 tensors agree in shape and in every bit, NaNs included."""
    return (
        found.dtype == expected.dtype == torch.float32
        and found.shape == expected.shape
        and torch.equal(found.view(torch.int32), expected.contiguous().view(torch.int32))
    )
