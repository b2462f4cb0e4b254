"""Tables of the GPU tests, the plain truth about them, and exact comparison.

The truth is a dict and a loop, as in tests/oracle.py. Needs Python and torch alone.
"""

from __future__ import annotations

import torch

INT64 = torch.iinfo(torch.int64)
INT32 = torch.iinfo(torch.int32)
EXTREMES = [INT64.min, INT64.min + 1, -1, 0, 1, INT32.max, 1 << 31, 1 << 32, INT64.max]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_keys(count: int, seed: int = 0) -> torch.Tensor:
    """Returns 64-bit keys from the whole range."""
    return torch.randint(INT64.min, INT64.max, (count,), generator=seeded(seed))


def checksum(rows: torch.Tensor) -> torch.Tensor:
    """Returns the sum of the bits of all elements but the last, one int32 per row."""
    total = rows.contiguous().view(torch.int32)[..., :-1].sum(-1, dtype=torch.int64)
    return (total & 0xFFFFFFFF).to(torch.int32)


def bits(rows: torch.Tensor) -> torch.Tensor:
    """Returns rows as integers: NaNs are equal if all their bits are."""
    return rows.contiguous().view(torch.int32)


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and torch.equal(bits(found), bits(expected))


class Table:
    """Keys with a row of random bits each (NaNs among them), and what every key must yield.

    A row begins with the low bits of its key and ends with the checksum of the rest, so that a row
    of another key and a row put together from two are told apart.
    """

    def __init__(
        self,
        keys: torch.Tensor,
        dim: int = 16,
        default: float = 0.5,
        key_bits: int = 64,
        vectors: torch.Tensor | None = None,
    ) -> None:
        self.keys = keys.to(torch.int64)
        self.dim = dim
        self.default = default
        self.key_bits = key_bits
        self.vectors = self._rows() if vectors is None else vectors
        self._mask = (1 << key_bits) - 1
        self._positions = {key & self._mask: i for i, key in enumerate(self.keys.tolist())}
        self._tell_truth()

    def __len__(self) -> int:
        return len(self._positions)

    def fresh_rows(self, keys: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Returns new rows of the same form for keys."""
        shape = (keys.numel(), self.dim)
        rows = torch.randint(INT32.min, INT32.max, shape, generator=generator)
        return self._sealed(keys.reshape(-1), rows.to(torch.int32).view(torch.float32))

    def update(self, keys: torch.Tensor, rows: torch.Tensor) -> None:
        """Follows `hps_torch.update`."""
        for key, row in zip(keys.reshape(-1).tolist(), rows, strict=True):
            position = self._positions.get(key & self._mask)
            if position is None:
                position = self._positions[key & self._mask] = len(self.keys)
                self.keys = torch.cat([self.keys, torch.tensor([key])])
                self.vectors = torch.cat([self.vectors, row[None]])
            else:
                self.vectors[position] = row
        self._tell_truth()

    def erase(self, keys: torch.Tensor) -> None:
        """Follows `hps_torch.erase`."""
        for key in keys.reshape(-1).tolist():
            self._positions.pop(key & self._mask, None)

    def _tell_truth(self) -> None:
        # The last row is that of a key which nobody knows.
        self._truth = torch.cat([self.vectors, torch.full((1, self.dim), self.default)])
        self._truth_on: dict[torch.device, torch.Tensor] = {}

    def _rows(self) -> torch.Tensor:
        shape = (len(self.keys), self.dim)
        rows = torch.randint(INT32.min, INT32.max, shape, generator=seeded(self.dim))
        return self._sealed(self.keys, rows.to(torch.int32).view(torch.float32))

    def _sealed(self, keys: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if self.dim > 2:
            rows[:, 0] = keys.to(torch.int32).view(torch.float32)
        if self.dim > 1:
            rows[:, -1] = checksum(rows).view(torch.float32)
        return rows

    def knows(self, key: int) -> bool:
        return (key & self._mask) in self._positions

    def count_unknown(self, keys: torch.Tensor) -> int:
        return sum(not self.knows(key) for key in keys.reshape(-1).tolist())

    def expected(self, keys: torch.Tensor) -> torch.Tensor:
        """Returns what a lookup must answer, on the keys' device."""
        truth = self._truth_on.get(keys.device)
        if truth is None:
            truth = self._truth_on.setdefault(keys.device, self._truth.to(keys.device))
        unknown = len(self.keys)
        positions = [
            self._positions.get(key & self._mask, unknown) for key in keys.reshape(-1).tolist()
        ]
        index = torch.tensor(positions, dtype=torch.int64, device=keys.device)
        return truth.index_select(0, index).reshape(*keys.shape, self.dim)

    def sample(self, count: int, generator: torch.Generator, unknown: float = 0.1) -> torch.Tensor:
        """Returns keys of the table, on the CPU, a share of them replaced by others."""
        known = self.keys[torch.randint(len(self.keys), (count,), generator=generator)]
        strangers = torch.randint(INT64.min, INT64.max, (count,), generator=generator)
        chance = torch.rand(count, generator=generator)
        keys = torch.where(chance < unknown, strangers, known)
        keys = torch.where(chance < unknown / 2, ~known, keys)
        return keys.to(torch.int32 if self.key_bits == 32 else torch.int64)

    def describe(self, row: torch.Tensor) -> str:
        """Says which row this is, for the message of a failed test."""
        if same_bits(row, self._truth[-1]):
            return "the default row"
        if not bits(row).any():
            return "a row of zeros"
        matches = (bits(self.vectors) == bits(row)).all(-1).nonzero().reshape(-1).tolist()
        if matches:
            return f"the row of key {int(self.keys[matches[0]])}"
        return "no row of the table"


def assert_rows(rows: torch.Tensor, keys: torch.Tensor, table: Table) -> None:
    """Fails, with what differs and how, unless rows are those of the keys, bit for bit."""
    expected = table.expected(keys)
    assert rows.dtype == torch.float32, f"{rows.dtype}"
    assert rows.device == keys.device, f"rows on {rows.device}, keys on {keys.device}"
    assert rows.shape == expected.shape, f"{tuple(rows.shape)} instead of {tuple(expected.shape)}"
    if same_bits(rows, expected):
        return
    flat = rows.reshape(-1, table.dim).cpu()
    wrong = (bits(flat) != bits(expected).reshape(-1, table.dim).cpu()).any(-1).nonzero()
    wrong_at = wrong.reshape(-1).tolist()
    lines = [f"{len(wrong_at)} of {len(flat)} rows of dim {table.dim} are wrong"]
    for at in wrong_at[:5]:
        key = int(keys.reshape(-1)[at])
        known = "in the table" if table.knows(key) else "not in the table"
        start = [hex(value & 0xFFFFFFFF) for value in bits(flat[at])[:4].tolist()]
        lines.append(
            f"position {at}, key {key} ({known}): {table.describe(flat[at])}, begins {start}"
        )
    raise AssertionError("\n".join(lines))
