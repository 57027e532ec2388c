"""What a check found: a level, a sentence, the fix, and where to look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]
FIRST = 3
"""Places that a finding names."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked.

    Attributes:
        level: ``ok``; ``warning``, which may be meant; ``error``, with which a run stops or is worth nothing.
        check: the name of the check. message: what was found. fix: what to do, empty where nothing is to be done.
        count: how many. places: the first of them. details: more, for ``--json``.
    """

    level: Level
    check: str
    message: str
    fix: str = ""
    count: int | None = None
    places: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    block: tuple[str, ...] = ()

    def line(self) -> str:
        """The finding in one line."""
        first = f" (first: {'; '.join(self.places)})" if self.places else ""
        fix = f". {self.fix}" if self.fix else ""
        return f"{self.level:<8} {self.check}: {self.message}{first}{fix}"

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found: dict[str, Any] = {"level": self.level, "check": self.check, "message": self.message}
        found |= {"fix": self.fix} if self.fix else {}
        found |= {} if self.count is None else {"count": self.count}
        found |= {"first": list(self.places)} if self.places else {}
        found |= {"shown": "\n".join(self.block)} if self.block else {}
        return {**found, **self.details}


def summary(findings: Sequence[Finding]) -> str:
    """How many of each level."""
    levels: Counter[str] = Counter(finding.level for finding in findings)
    names = {"error": "errors", "warning": "warnings", "ok": "ok"}
    parts = []
    for level, plural in names.items():
        count = levels[level]
        parts.append(f"{count} {level if count == 1 else plural}")
    return ", ".join(parts)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether one of them is an error."""
    return any(finding.level == "error" for finding in findings)


def share(count: int, total: int) -> str:
    """``12 of 400 (3.0%)``."""
    return f"{count} of {total} ({count / total:.1%})" if total else f"{count} of {total}"


def first(places: Iterable[str]) -> tuple[str, ...]:
    """The first few places."""
    return tuple(list(places)[:FIRST])
