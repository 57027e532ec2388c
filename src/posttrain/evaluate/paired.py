"""Two systems on the same questions: who is right where, and whether that can be chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class PairedCounts:
    """Right answers of two systems, question by question.

    Attributes:
        both, only_first, only_second, neither: how many questions; they add up to all.
        p_value: McNemar's exact test, see ``paired_counts``.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def paired_counts(first: Sequence[bool], second: Sequence[bool]) -> PairedCounts:
    """McNemar's exact test: were both equally good, each question that one alone answers would be either's by a coin.

        p = min(1, 2 Σ_{k ≤ min(b, c)} C(b+c, k) / 2^(b+c)),  b, c = right by the first, the second alone

    Paper: McNemar, 1947 (Note on the sampling error of the difference between correlated proportions).

    Args:
        first, second: right or not, of the same questions in the same order.

    Raises:
        ValueError: different lengths.
    """
    cells = [(bool(a), bool(b)) for a, b in zip(first, second, strict=True)]
    only_first, only_second = cells.count((True, False)), cells.count((False, True))
    discordant = only_first + only_second
    tail = sum(comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    p_value = min(1.0, 2 * tail / 2**discordant)
    return PairedCounts(cells.count((True, True)), only_first, only_second, cells.count((False, False)), p_value)
