"""How much completions say again what they have said."""

from __future__ import annotations

from collections.abc import Sequence

SIZE = 10
"""Characters of a run. Letters and not words, so that what is strung together without spaces counts, Chinese as well
as peapeapea; so many, because prose and code repeat shorter runs without being loops."""


def repetition(completions: Sequence[str]) -> float:
    """Mean over completions of ``repeated_share``, each counting the same however long it is; 0 without any.

    >>> repetition(["limelimelimelime", "lime, then another fruit"])
    0.2142857142857143
    """
    return sum(map(repeated_share, completions)) / len(completions) if completions else 0.0


def repeated_share(text: str) -> float:
    """Share of the runs of ten characters that have occurred before in the text; 0 where it is shorter.

        1 − |distinct runs| / |runs|

    White space of any length is one space: indentation is no repetition.
    """
    text = " ".join(text.split())
    count = len(text) - SIZE + 1
    return 1 - len({text[i : i + SIZE] for i in range(count)}) / count if count > 0 else 0.0
