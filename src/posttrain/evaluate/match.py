"""Whether answers are right by their text, or by the number they end in."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from posttrain.config.use import EvalConfig
from posttrain.errors import UserError
from posttrain.evaluate.bootstrap import mean_of
from posttrain.rewards.rules import last_number, same_number

MEASURES = (
    mean_of("correct", name="accuracy", is_share=True, unit="share"),
    mean_of("found", name="answered", title="answers found", is_share=True, unit="share", better=""),
)


class Matching:
    """Takes the answer out of a completion and compares it with that of the reference."""

    def __init__(self, settings: EvalConfig) -> None:
        """As the keys ``match`` and ``match_*`` say."""
        self._settings = settings
        self._pattern = re.compile(settings.match_pattern, re.DOTALL) if settings.match_pattern else None

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        names = ("match", "match_pattern", "match_ignore_case", "match_ignore_punctuation", "match_tolerance")
        return {name: getattr(self._settings, name) for name in names}

    def check(self, references: list[str]) -> None:
        """Refuse references that no answer could equal.

        Raises:
            UserError: names the first of them.
        """
        for number, reference in enumerate(references, start=1):
            wanted = self._wanted(reference)
            if self._settings.match == "number" and last_number(wanted) is None:
                raise UserError(
                    f"match: the reference of row {number} holds no number: {wanted[:60]!r}; remove the row, or write "
                    "match: text"
                )

    def record(self, completion: str, reference: str) -> dict[str, Any]:
        """``answer``: what was taken out; ``found``: whether there was something to take; ``correct``."""
        wanted, answer = self._wanted(reference), self._taken(completion)
        if answer is None:
            return {"answer": None, "found": False, "correct": False}
        if self._settings.match == "number":
            found = last_number(answer) is not None
            return {
                "answer": answer if self._pattern else _last(answer),
                "found": found,
                "correct": found and same_number(answer, wanted, self._settings.match_tolerance) == 1.0,
            }
        ours, theirs = self._plain(answer), self._plain(wanted)
        is_right = theirs in ours if self._settings.match == "contains" else ours == theirs
        return {"answer": answer, "found": bool(ours), "correct": is_right}

    def _wanted(self, reference: str) -> str:
        """The answer in a reference: what the pattern takes out, else all of it."""
        found = self._pattern.search(reference) if self._pattern else None
        return _group(found) if found else reference

    def _taken(self, completion: str) -> str | None:
        """The last answer that the pattern finds; all of the completion without a pattern."""
        if self._pattern is None:
            return completion
        found = list(self._pattern.finditer(completion))
        return _group(found[-1]) if found else None

    def _plain(self, text: str) -> str:
        """Without what does not count: width of characters, white space, and what the keys say."""
        text = unicodedata.normalize("NFKC", text)
        if self._settings.match_ignore_case:
            text = text.casefold()
        if self._settings.match_ignore_punctuation:
            text = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in text)
        return " ".join(text.split())


def _group(found: re.Match[str]) -> str:
    return (found[1] if found.re.groups else found[0]) or ""


def _last(text: str) -> str | None:
    number = last_number(text)
    return None if number is None else f"{number[0]:.12g}{'%' if number[1] else ''}"
