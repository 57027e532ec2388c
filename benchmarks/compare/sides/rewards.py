"""The deterministic reward of the GRPO comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def distinct_share(completions: Sequence[str], **_: Any) -> list[float]:
    """Different words of an answer as a share of its words."""
    split = [text.split() for text in completions]
    return [len(set(words)) / len(words) if words else 0.0 for words in split]
