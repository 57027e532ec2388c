"""Beginnings that prompts have in common with what lies in the cache already."""

from __future__ import annotations

from collections.abc import Sequence

LEAST = 16
"""Tokens from which on a beginning is worth to be copied instead of computed."""


class Prefixes:
    """Which tokens' keys and values lie at the start of each slot, as far as they are known to."""

    def __init__(self, slots: int) -> None:
        """Nothing lies anywhere."""
        self._tokens: list[tuple[int, ...]] = [()] * slots

    def lies(self, slot: int, tokens: Sequence[int]) -> None:
        """From now on these do, and nothing is known of what lies behind them."""
        self._tokens[slot] = tuple(tokens)

    def longest(self, ids: Sequence[int]) -> tuple[int, int]:
        """(slot, tokens) of the longest beginning of a prompt that lies somewhere; (0, 0) where it is not worth it.

        The last token never counts: its state is what the first completion token is drawn from.
        """
        best = 0, 0
        for slot, tokens in enumerate(self._tokens):
            limit = min(len(tokens), len(ids) - 1)
            if limit > best[1] and tokens[: best[1]] == tuple(ids[: best[1]]):
                best = max(best, (slot, _common(tokens, ids, limit)), key=lambda found: found[1])
        return best if best[1] >= LEAST else (0, 0)


def _common(one: Sequence[int], other: Sequence[int], limit: int) -> int:
    return next((place for place in range(limit) if one[place] != other[place]), limit)
