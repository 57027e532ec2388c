"""How much completions say again what they have said."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.rewards.rules import repeated_share

SIZE = 4
"""Words of a run that counts as said again; long answers rightly repeat shorter ones."""


def repetition(completions: Sequence[str]) -> float:
    """Mean over completions of the share of their runs of four words that have occurred before in the same one.

    Characters of Chinese and Japanese are words. Each completion counts the same, however long; 0 without any.
    """
    return sum(repeated_share(text, SIZE) for text in completions) / len(completions) if completions else 0.0
