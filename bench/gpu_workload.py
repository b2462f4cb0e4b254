"""The keys and rows of the GPU benchmarks: the same numbers on every machine.

A key's popularity follows Zipf's law over ranks (rank 0 is the hottest), a fixed permutation turns
ranks into keys, and a row is a function of its key, so that any float of any answer can be checked.
All draws come from splitmix64 of a stream and a position. `check` compares with reference values.

torch's int64 wraps like an unsigned 64-bit integer in sums and products; only the shift to the
right must be told not to keep the sign.
"""

from __future__ import annotations

import math

import torch

ALPHA = 1.05
#: Ranks whose probabilities are summed one by one; the midpoint rule covers those behind.
EXACT_RANKS = 4096
#: Batches of keys that take turns.
BATCHES = 16

# Phases of a stream.
HIT_UNIFORM, HIT_ZIPF, MIXED, POWER_LAW, LATENCY, MANY_TABLES = range(1, 7)

#: Rows of the table at full size, by dim. The cache holds a tenth.
ROWS = {128: 20_000_000, 32: 60_000_000}

HASHED_BITS = 60
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_MASK_32 = 0xFFFFFFFF


def signed(number: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: torch.Tensor) -> torch.Tensor:
    x = x + signed(_GOLDEN)
    x = (x ^ shift_right(x, 30)) * signed(_FIRST)
    x = (x ^ shift_right(x, 27)) * signed(_SECOND)
    return x ^ shift_right(x, 31)


def stream(dim: int, phase: int, size: int, batch: int) -> int:
    """Names one sequence of draws; of `size`, the logarithm counts (rounded up)."""
    return dim << 48 | phase << 40 | (size - 1).bit_length() << 32 | batch


def uniforms(name: int, size: int, device: torch.device) -> torch.Tensor:
    """The first draws of a stream: doubles in [0, 1) with 53 bits."""
    seed = splitmix64(torch.full((), signed(name), dtype=torch.int64, device=device))
    positions = torch.arange(size, dtype=torch.int64, device=device)
    return shift_right(splitmix64(seed + positions), 11).double() * 2.0**-53


def uniform_positions(u: torch.Tensor, items: int) -> torch.Tensor:
    return (u * float(items)).long().clamp_(max=items - 1)


class Zipf:
    """Zipf's law over `items` ranks with exponent ALPHA, drawn by inversion."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.exact = min(items, EXACT_RANKS)
        self.sums = [0.0]
        for rank in range(1, self.exact + 1):
            self.sums.append(self.sums[-1] + float(rank) ** -ALPHA)
        self.head = self.sums[-1]
        self.start = (self.exact + 0.5) ** (1.0 - ALPHA)
        self.total = self.mass(items)

    def mass(self, ranks: int) -> float:
        """Share of the first ranks, times `total`."""
        if ranks <= self.exact:
            return self.sums[ranks]
        return self.head + ((ranks + 0.5) ** (1.0 - ALPHA) - self.start) / (1.0 - ALPHA)

    def ranks(self, u: torch.Tensor) -> torch.Tensor:
        t = u * self.total
        sums = torch.tensor(self.sums[1:], dtype=torch.float64, device=u.device)
        near = torch.searchsorted(sums, t, right=True)  # the first whose sum exceeds t
        z = self.start + (1.0 - ALPHA) * (t - self.head)
        far = torch.floor(z ** (1.0 / (1.0 - ALPHA)) + 0.5)
        far = far.clamp_(min=self.exact + 1).clamp_(max=self.items).long() - 1
        return torch.where(t < self.head, near, far)


def power_law_ranks(u: torch.Tensor, items: int, alpha: float) -> torch.Tensor:
    """Ranks with density ~ rank^-alpha: floor((x (N^g - 1) + 1)^(1/g)), g = 1 - alpha."""
    gamma = 1.0 - alpha
    y = torch.floor((u * (float(items) ** gamma - 1.0) + 1.0) ** (1.0 / gamma))
    return y.long().clamp_(min=1, max=items) - 1


def mix(x: torch.Tensor, bits: int) -> torch.Tensor:
    """A one-to-one map of the numbers of `bits` bits."""
    mask, shift = (1 << bits) - 1, (bits + 1) // 2
    x = (x + signed(_GOLDEN)) & mask
    x = x ^ (x >> shift)
    x = (x * signed(_FIRST)) & mask
    x = x ^ (x >> shift)
    x = (x * signed(_SECOND)) & mask
    return x ^ (x >> shift)


def keys_of(ranks: torch.Tensor, rows: int) -> torch.Tensor:
    """The keys of ranks: a permutation of [0, rows).

    The mix works on the next power of two and is applied again while its result is too large.
    """
    bits = (rows - 1).bit_length()
    keys = mix(ranks, bits)
    while True:
        outside = (keys >= rows).nonzero().squeeze(1)
        if outside.numel() == 0:
            return keys
        keys[outside] = mix(keys[outside], bits)


def all_keys(rows: int, device: torch.device) -> torch.Tensor:
    """The keys of a table, hottest first."""
    keys = torch.empty(rows, dtype=torch.int64, device=device)
    for start in range(0, rows, 1 << 24):
        part = keys[start : start + (1 << 24)]
        ranks = torch.arange(start, start + len(part), dtype=torch.int64, device=device)
        part.copy_(keys_of(ranks, rows))
    return keys


def hashed(keys: torch.Tensor) -> torch.Tensor:
    """Keys as a hash function makes them: 60 bits, spread evenly."""
    return mix(keys, HASHED_BITS)


def rows_of(keys: torch.Tensor, dim: int) -> torch.Tensor:
    """float32 rows; each value is a number of 24 bits, so exact."""
    first = ((keys & _MASK_32) * 0x9E3779B1) & _MASK_32
    columns = torch.arange(dim, dtype=torch.int64, device=keys.device)
    step = (columns * 0x85EBCA77) & _MASK_32
    return (((first.unsqueeze(1) + step) & _MASK_32) >> 8).float()


#: Of batches of 1,024 keys, but for `distinct`, which is of 1,048,576.
REFERENCE = {
    128: {
        "keys of ranks 0 to 5": [8808097, 8299378, 13295108, 7642489, 6101445, 1014310],
        "mixed, first keys": [8756946, 7506266, 797492, 797492],
        "mixed, sum of keys": 10134589555,
        "hit uniform, positions": [1308564, 866470, 81, 1825731],
        "hit Zipf, positions": [8, 456437, 5, 91073],
        "share of the hottest key, %": 8.37,
        "mixed, distinct keys": 286_991,
    },
    32: {
        "keys of ranks 0 to 5": [5837198, 47181759, 12353464, 3681896, 22384498, 14462029],
        "mixed, first keys": [56325002, 52732411, 11447202, 41647723],
        "mixed, sum of keys": 27747721034,
        "hit uniform, positions": [3925479, 2015286, 1412893, 2753621],
        "hit Zipf, positions": [127, 6103, 191, 4711696],
        "share of the hottest key, %": 8.06,
        "mixed, distinct keys": 318_412,
    },
}

#: A device's pow may differ in the last bit, which moves one draw in millions by a rank.
DISTINCT_SLACK = 2


def found_values(dim: int, device: torch.device) -> dict[str, object]:
    """What this generator says to the questions of REFERENCE."""
    rows = ROWS[dim]
    cached = rows // 10
    zipf = Zipf(rows)

    def draw(phase: int, size: int) -> torch.Tensor:
        return uniforms(stream(dim, phase, size, 0), size, device)

    mixed = keys_of(zipf.ranks(draw(MIXED, 1024)), rows)
    many = keys_of(zipf.ranks(draw(MIXED, 1 << 20)), rows)
    return {
        "keys of ranks 0 to 5": keys_of(torch.arange(6, device=device), rows).tolist(),
        "mixed, first keys": mixed[:4].tolist(),
        "mixed, sum of keys": int(mixed.sum()),
        "hit uniform, positions": uniform_positions(draw(HIT_UNIFORM, 1024), cached)[:4].tolist(),
        "hit Zipf, positions": Zipf(cached).ranks(draw(HIT_ZIPF, 1024))[:4].tolist(),
        "share of the hottest key, %": round(100.0 / zipf.total, 2),
        "mixed, distinct keys": int(torch.unique(many).numel()),
    }


def check(device: torch.device) -> list[str]:
    """Returns what differs from the reference values, as sentences."""
    problems = []
    for dim, expected in REFERENCE.items():
        found = found_values(dim, device)
        for name, value in expected.items():
            same = found[name] == value
            if name == "mixed, distinct keys":
                same = math.isclose(found[name], value, rel_tol=0, abs_tol=DISTINCT_SLACK)
            if not same:
                problems.append(f"dim {dim}: {name}: expected {value}, found {found[name]}")
    # Rows in plain integers.
    keys = [0, 1, 8808097, 2**40 + 12345, -1]
    plain = [[((k * 0x9E3779B1 + j * 0x85EBCA77) % 2**32) >> 8 for j in range(128)] for k in keys]
    if rows_of(torch.tensor(keys, device=device), 128).tolist() != plain:
        problems.append("rows differ from those computed in plain integers")
    some = torch.arange(1 << 16, device=device)
    if torch.unique(hashed(some)).numel() != len(some) or int(hashed(some).max()) < 2**59:
        problems.append("hashed keys are not distinct, or not of 60 bits")
    return problems
