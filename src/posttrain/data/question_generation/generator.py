"""Writes the question-generation data set: demonstrations, pairs, passages to ask about, held-out passages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from posttrain.data.made_files import json_text, make_folder, write_text
from posttrain.data.question_generation.mistakes import bad_question, good_question, hasty_question
from posttrain.data.question_generation.subjects import Kind, Passage, draw_passage, kinds
from posttrain.errors import UserError

_PAIRS: dict[str, Any] = {
    "ranking": True,
    "columns": {"prompt": "content", "chosen": "chosen", "rejected": "rejected"},
}
_ROWS: dict[str, Any] = {"columns": {"prompt": "content", "response": "query"}}
DATASET_INFO: dict[str, dict[str, Any]] = {
    "questions_sft": {"file_name": "sft.jsonl", **_ROWS},
    "questions_sft_heldout": {"file_name": "sft_heldout.jsonl", **_ROWS},
    "questions_pairs": {"file_name": "pairs.jsonl", **_PAIRS},
    "questions_pairs_heldout": {"file_name": "pairs_heldout.jsonl", **_PAIRS},
    "questions_prompts": {"file_name": "prompts.jsonl", **_ROWS},
    "questions_heldout": {"file_name": "heldout.jsonl", **_ROWS},
}

Row = dict[str, Any]
Maker = Callable[[Passage, str, Random], Row]


@dataclass(frozen=True)
class Manifest:
    """What was written.

    Attributes:
        directory: where. counts: file name -> rows.
        digests: file name -> SHA-256, equal for equal arguments.
    """

    directory: Path
    seed: int
    counts: Mapping[str, int]
    digests: Mapping[str, str]


def generate(
    directory: Path,
    *,
    seed: int = 0,
    num_sft: int = 6000,
    num_pairs: int = 4000,
    num_prompts: int = 1000,
    num_heldout: int = 200,
    num_heldout_pairs: int = 200,
    hasty_share: float = 0.6,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the data set under ``directory``; the same arguments give the same bytes.

    No subject of a held-out passage occurs in a text of a training file, or in a question that is to be learnt.

    Args:
        directory: created when missing; files of an earlier call are replaced. seed: of every choice.
        num_sft: passages, each with one question. num_pairs: each with a good question and a bad one.
        num_prompts: to sample questions for. num_heldout, num_heldout_pairs: to measure on.
        hasty_share: of the demonstrations, questions that name nobody or ask for nothing; preferences can correct that.
        progress: called with (rows written, rows in all).

    Returns:
        The manifest, also written as ``manifest.json``.

    Raises:
        UserError: counts or a share that cannot work, or a folder that cannot be written.
    """
    counts = {"num_sft": num_sft, "num_pairs": num_pairs, "num_prompts": num_prompts}
    counts |= {"num_heldout": num_heldout, "num_heldout_pairs": num_heldout_pairs}
    _check(directory, counts, hasty_share)

    def demonstration(passage: Passage, neighbour: str, rng: Random) -> Row:
        asked = hasty_question if rng.random() < hasty_share else good_question
        return {"content": passage.text, "query": asked(passage, rng)}

    plan: dict[str, tuple[Maker, int, str]] = {
        "sft.jsonl": (demonstration, num_sft, "train"),
        "sft_heldout.jsonl": (demonstration, num_heldout, "heldout"),
        "pairs.jsonl": (_pair, num_pairs, "train"),
        "pairs_heldout.jsonl": (_pair, num_heldout_pairs, "heldout"),
        "prompts.jsonl": (_prompt, num_prompts, "train"),
        "heldout.jsonl": (_prompt, num_heldout, "heldout"),
    }
    total = sum(count for _, count, _ in plan.values())
    written: dict[str, int] = {}
    digests: dict[str, str] = {}
    for name, (make, count, side) in plan.items():
        rng = Random(f"questions {seed} {name}")
        rows = [make(passage, neighbour, rng) for passage, neighbour in _passages(count, side, rng)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        digests[name], written[name] = write_text(directory / name, text), len(rows)
        if progress:
            progress(sum(written.values()), total)
    digests["dataset_info.json"] = write_text(directory / "dataset_info.json", json_text(DATASET_INFO))
    manifest = Manifest(directory, seed, written, digests)
    write_text(directory / "manifest.json", json_text({"seed": seed, "counts": written, "digests": digests}))
    return manifest


def _passages(count: int, side: str, rng: Random) -> Iterator[tuple[Passage, str]]:
    """Passages of all kinds in turn, and of each another subject of its kind, all from one side."""
    every: Sequence[Kind] = list(kinds().values())
    for number in range(count):
        kind = every[number % len(every)]
        subject, neighbour = _subject(kind, side, rng), _subject(kind, side, rng)
        while neighbour == subject:
            neighbour = _subject(kind, side, rng)
        yield draw_passage(kind, subject, neighbour, rng), neighbour


def _subject(kind: Kind, side: str, rng: Random) -> str:
    """A name of this side: names that hold each other are on one."""
    while True:
        name = kind.subject(rng)
        is_held_out = hashlib.sha256(kind.tail(name).encode("utf-8")).digest()[0] < 64
        if is_held_out == (side == "heldout"):
            return name


def _pair(passage: Passage, neighbour: str, rng: Random) -> Row:
    chosen = good_question(passage, rng)
    mistake, rejected = bad_question(passage, chosen, neighbour, rng)
    return {"content": passage.text, "chosen": chosen, "rejected": rejected, "mistake": mistake}


def _prompt(passage: Passage, neighbour: str, rng: Random) -> Row:
    row = {"content": passage.text, "query": good_question(passage, rng)}
    return row | {"kind": passage.kind.name, "subject": passage.subject, "stated": list(passage.stated)}


def _check(directory: Path, counts: Mapping[str, int], hasty_share: float) -> None:
    if not 0 <= hasty_share <= 1:
        raise UserError(f"hasty_share is {hasty_share}: it must lie between 0 and 1")
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"{name} is {count}: it must be at least 1")
    make_folder(directory)
