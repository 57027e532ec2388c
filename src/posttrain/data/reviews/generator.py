"""Writes the reviews: texts to learn language from, pairs, beginnings to go on from, and held-out ones of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from posttrain.data.made_files import json_text, make_folder, write_text
from posttrain.data.reviews.words import Kind, kinds, places
from posttrain.errors import UserError

_TEXTS: dict[str, Any] = {"columns": {"prompt": "opening", "response": "rest"}}
_PAIRS: dict[str, Any] = {
    "ranking": True,
    "columns": {"prompt": "opening", "chosen": "chosen", "rejected": "rejected"},
}
DATASET_INFO: dict[str, dict[str, Any]] = {
    "reviews_sft": {"file_name": "sft.jsonl", **_TEXTS},
    "reviews_sft_heldout": {"file_name": "sft_heldout.jsonl", **_TEXTS},
    "reviews_pairs": {"file_name": "pairs.jsonl", **_PAIRS},
    "reviews_pairs_heldout": {"file_name": "pairs_heldout.jsonl", **_PAIRS},
    "reviews_prompts": {"file_name": "prompts.jsonl", **_TEXTS},
    "reviews_heldout": {"file_name": "heldout.jsonl", **_TEXTS},
}
_MOODS = (0.15, 0.5, 0.85)
"""Chance of praise in each clause of a review."""
_BEGUN = 0.3
"""Share of the beginnings that hold a first clause."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What was written.

    Attributes:
        directory: where. counts: file name -> rows. digests: file name -> SHA-256, equal for equal arguments.
    """

    directory: Path
    seed: int
    counts: Mapping[str, int]
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """What a review is about: ``name``, which its opening holds."""

    kind: str
    name: str
    opening: str


def generate(
    directory: Path,
    *,
    seed: int = 0,
    num_sft: int = 6000,
    num_pairs: int = 3000,
    num_prompts: int = 1000,
    num_heldout: int = 200,
    num_heldout_pairs: int = 300,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the data set under ``directory``; the same arguments give the same bytes.

    No subject of a held-out row occurs in a training file.

    Args:
        directory: created when missing; files of an earlier call are replaced. seed: of every choice.
        num_sft: reviews. num_pairs: two reviews of one subject, of which the chosen one praises more.
        num_prompts: beginnings to go on from. num_heldout, num_heldout_pairs: to measure on.
        progress: called with (rows written, rows in all).

    Returns:
        The manifest, also written as ``manifest.json``.

    Raises:
        UserError: a count below 1, or a folder that cannot be written.
    """
    plan: dict[str, tuple[Callable[[Subject, Random], Row], int, bool]] = {
        "sft.jsonl": (_review_row, num_sft, False),
        "sft_heldout.jsonl": (_review_row, num_heldout, True),
        "pairs.jsonl": (_pair_row, num_pairs, False),
        "pairs_heldout.jsonl": (_pair_row, num_heldout_pairs, True),
        "prompts.jsonl": (_prompt_row, num_prompts, False),
        "heldout.jsonl": (_prompt_row, num_heldout, True),
    }
    _check(directory, plan)
    total = sum(count for _, count, _ in plan.values())
    counts: dict[str, int] = {}
    digests: dict[str, str] = {}
    for name, (row_of, count, held_out) in plan.items():
        rng = Random(f"reviews/{seed}/{name}")
        rows = [row_of(_subject(rng, held_out=held_out), rng) for _ in range(count)]
        digests[name] = write_text(
            directory / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
        counts[name] = count
        if progress:
            progress(sum(counts.values()), total)
    digests["dataset_info.json"] = write_text(directory / "dataset_info.json", json_text(DATASET_INFO))
    write_text(directory / "manifest.json", json_text({"seed": seed, "counts": counts, "digests": digests}))
    return Manifest(directory, seed, counts, digests)


def _subject(rng: Random, *, held_out: bool) -> Subject:
    """A subject of one side: a hash of its name decides on which side it is."""
    while True:
        kind = rng.choice(list(kinds()))
        name = f"{rng.choice(places())}的{rng.choice(kinds()[kind].nouns)}"
        if (hashlib.sha256(name.encode("utf-8")).digest()[0] < 64) == held_out:
            return Subject(kind, name, rng.choice(kinds()[kind].openings).format(name=name))


def _review_row(subject: Subject, rng: Random) -> Row:
    return {"opening": subject.opening, "rest": _rest(kinds()[subject.kind], rng.choice(_MOODS), rng)}


def _pair_row(subject: Subject, rng: Random) -> Row:
    """Two reviews of the same sides; in each clause the chosen one praises where the rejected one does, or more."""
    kind = kinds()[subject.kind]
    sides = [*rng.sample(kind.sides, rng.choice((2, 3))), kind.closing]
    worse = [rng.random() < rng.choice(_MOODS) for _ in sides]
    changed = rng.sample(range(len(sides)), rng.randint(1, len(sides)))
    worse = [praises and place not in changed for place, praises in enumerate(worse)]
    better = [praises or place in changed for place, praises in enumerate(worse)]
    chosen, rejected = (
        _joined([rng.choice(side.clauses(praises)) for side, praises in zip(sides, tones, strict=True)])
        for tones in (better, worse)
    )
    return {"opening": subject.opening, "chosen": chosen, "rejected": rejected}


def _prompt_row(subject: Subject, rng: Random) -> Row:
    """A beginning, in some of them with a first clause, which may praise or blame."""
    kind, opening = kinds()[subject.kind], subject.opening
    rest = _rest(kind, rng.choice(_MOODS), rng)
    if rng.random() < _BEGUN:
        first, _, rest = rest.partition("，")
        opening = f"{opening}{first}，"
    return {"opening": opening, "rest": rest, "kind": subject.kind, "subject": subject.name}


def _rest(kind: Kind, mood: float, rng: Random) -> str:
    sides = [*rng.sample(kind.sides, rng.choice((2, 3))), kind.closing]
    return _joined([rng.choice(side.clauses(rng.random() < mood)) for side in sides])


def _joined(clauses: list[str]) -> str:
    return "，".join(clauses) + "。"


def _check(directory: Path, plan: Mapping[str, tuple[Any, int, bool]]) -> None:
    for name, (_, count, _) in plan.items():
        if count < 1:
            raise UserError(f"{name} would have {count} rows: every count must be at least 1")
    make_folder(directory)
