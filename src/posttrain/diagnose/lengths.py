"""How long rows are, as quantiles and a histogram in text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_BINS = 12
_WIDTH = 40
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths in one unit.

    Attributes:
        unit: ``tokens`` or ``characters``. values: of the rows measured, ascending. longest: of all that is known.
        sampled_of: rows in all, where only some were measured.
    """

    unit: str
    values: Sequence[int]
    longest: int
    sampled_of: int | None = None

    def quantile(self, q: float) -> int:
        """The length that a share ``q`` of the rows does not exceed."""
        return self.values[max(0, math.ceil(q * len(self.values)) - 1)]

    def above(self, limit: int) -> int:
        """How many of the measured rows are longer."""
        return sum(value > limit for value in self.values)

    def quantiles(self) -> dict[str, int]:
        """``p50`` and so on, with the longest as ``max``."""
        return {**{f"p{round(q * 100)}": self.quantile(q) for q in _QUANTILES}, "max": self.longest}

    def sentence(self) -> str:
        """Quantiles in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.quantiles().items()) + f" {self.unit}"

    def histogram(self, limit: int | None = None) -> list[str]:
        """Lines of a histogram; the bin in which ``limit`` lies says so. The last bin may be open."""
        shown = limit if limit and limit <= self.longest else None
        top = max(self.quantile(0.99), shown or 0, 1)
        step = _round_up(max(1, math.ceil(top / _BINS)))
        counts = [0] * (math.ceil(top / step) + 1)
        for value in self.values:
            counts[min(max(value - 1, 0) // step, len(counts) - 1)] += 1
        if not counts[-1]:
            counts.pop()
        most, lines = max(counts), []
        for number, count in enumerate(counts):
            low, high = number * step + 1, (number + 1) * step
            name = f"{low}-{high}" if number < len(counts) - 1 or self.longest <= high else f"{low} and more"
            bar = "#" * (math.ceil(count / most * _WIDTH) if count else 0)
            mark = f"  <- cutoff_len {limit}" if shown and low <= shown <= high else ""
            lines.append(f"{name:>16} {count:>7} {bar}{mark}")
        return lines


def _round_up(step: int) -> int:
    """The next number that reads well: 1, 2, 5, 10, 20, 25, 50, 100 ... or, between them, a power of two."""
    if step & (step - 1) == 0:
        return step
    magnitude = 10 ** (len(str(step)) - 1)
    return next(n * magnitude // 4 for n in (4, 8, 10, 16, 20, 40) if n * magnitude // 4 >= step)
