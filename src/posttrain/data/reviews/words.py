"""What reviews are made of, and counting it in a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

Clauses = tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """One side of a subject: clauses that praise it, and clauses that blame it."""

    praise: Clauses
    blame: Clauses

    def clauses(self, praises: bool) -> Clauses:
        """Those of one tone."""
        return self.praise if praises else self.blame


@dataclass(frozen=True)
class Kind:
    """A kind of subject.

    Attributes:
        nouns: what subjects are. openings: with ``{name}``; they praise and blame nothing.
        sides: of a subject. closing: clauses that end a review.
    """

    nouns: Clauses
    openings: Clauses
    sides: tuple[Side, ...]
    closing: Side


@dataclass(frozen=True)
class Tone:
    """How many clauses of a text praise, and how many blame."""

    praise: int
    blame: int

    @property
    def share(self) -> float | None:
        """The share of praise; None for a text that does neither."""
        total = self.praise + self.blame
        return self.praise / total if total else None


@cache
def kinds() -> Mapping[str, Kind]:
    """All kinds of subjects by name."""
    return {
        name: Kind(
            nouns=tuple(entry["nouns"]),
            openings=tuple(entry["openings"]),
            sides=tuple(Side(tuple(side["praise"]), tuple(side["blame"])) for side in entry["sides"]),
            closing=Side(tuple(entry["praise"]), tuple(entry["blame"])),
        )
        for name, entry in _read()["kinds"].items()
    }


@cache
def places() -> Clauses:
    """Where subjects are."""
    return tuple(_read()["places"])


def tone(text: str) -> Tone:
    """The clauses of a text that are known to praise or blame; a clause that was changed counts for nothing."""
    return Tone(*(sum(text.count(clause) for clause in _known(praises)) for praises in (True, False)))


@cache
def _known(praises: bool) -> Clauses:
    every = [side.clauses(praises) for kind in kinds().values() for side in (*kind.sides, kind.closing)]
    return tuple(dict.fromkeys(clause for clauses in every for clause in clauses))


@cache
def _read() -> dict[str, Any]:
    text = (resources.files("posttrain.data.reviews") / "words.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found
