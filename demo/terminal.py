"""What the demo shows: headings, a progress bar, tables of numbers."""

import sys
import time
from collections.abc import Sequence

_WIDTH = 30


def heading(text: str) -> None:
    """Begins a part of the demo."""
    print(f"\n{_bold(text)}", flush=True)


def line(text: str) -> None:
    """Prints one line of a part."""
    print(f"  {text}", flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def cells(row: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "   ".join([first, *others])

    line(cells(header))
    line("-" * (sum(widths) + 3 * (len(widths) - 1)))
    for row in rows:
        line(cells(row))


class Progress:
    """A bar that moves on a terminal; elsewhere, a line every few seconds."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = self._shown = time.monotonic()
        self._is_terminal = sys.stdout.isatty()

    def show(self, done: int, text: str) -> None:
        """Shows that ``done`` of the total is done."""
        now = time.monotonic()
        share = done / self._total
        left = (now - self._start) * (1 - share) / max(share, 1e-9)
        if self._is_terminal:
            full = int(share * _WIDTH)
            bar = "#" * full + "-" * (_WIDTH - full)
            print(f"\r\033[K  [{bar}] {text}, {left:.0f} s left", end="", flush=True)
        elif now - self._shown > 5:
            self._shown = now
            line(f"{share:4.0%}  {text}, {left:.0f} s left")

    def finish(self, text: str) -> None:
        """Replaces the bar by a line."""
        clear = "\r\033[K" if self._is_terminal else ""
        print(f"{clear}  {text}", flush=True)


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else f"=== {text}"
