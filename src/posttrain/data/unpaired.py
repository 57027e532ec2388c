"""Answers that somebody found good or bad, each on its own: rows -> examples -> encoded rows with a mismatched twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.data.encode import Side, encode_answers
from posttrain.data.formats import Layout, UnpairedExample, UnusableRowError, chat_example, pair_example
from posttrain.data.template import EncodedRow, Template
from posttrain.errors import UserError

LABEL_COLUMNS = ("kto_tag", "label")
GOOD, BAD = ("true", "1", "yes"), ("false", "0", "no")


@dataclass(frozen=True, slots=True)
class EncodedAnswer:
    """One judged answer, and the same prompt with another prompt's answer.

    Attributes:
        ref_logps: log-probabilities of ``row`` and of ``mismatched`` under the reference, summed over the answer.
    """

    row: EncodedRow
    desirable: bool
    mismatched: EncodedRow
    ref_logps: tuple[float, float] | None = None

    def __len__(self) -> int:
        return max(len(self.row), len(self.mismatched))


def unpaired_examples(row: Mapping[str, Any], layout: Layout, where: str) -> tuple[UnpairedExample, ...]:
    """The row's last answer with its label, from the column ``kto_tag`` (or ``label``); a pair is a good and a bad one.

    Raises:
        UserError: if a column is missing or malformed.
        UnusableRowError: if the answer is empty, or both answers of a pair are the same.
    """
    named = layout.columns.get("kto_tag")
    column = named or next((name for name in LABEL_COLUMNS if name in row), None)
    if column is None and "chosen" in layout.columns:
        pair = pair_example(row, layout, where, None)
        sides = ((pair.chosen, True), (pair.rejected, False))
        return tuple(
            UnpairedExample(prompt=pair.prompt, answer=answer, desirable=good, where=where) for answer, good in sides
        )
    if column is None or column not in row:
        raise UserError(
            f"{where}: no column {named or 'kto_tag'!r} (found: {', '.join(map(str, row)) or 'none'}). Stage kto needs "
            "true for a good answer and false for a bad one, or rows with `chosen` and `rejected`."
        )
    text = str(row[column]).strip().lower()
    if text not in GOOD + BAD:
        raise UserError(f"{where}: {column!r} must be true or false, found {row[column]!r}")
    chat = chat_example(row, layout, where)
    if not chat.messages[-1].content:
        raise UnusableRowError("empty answer")
    answer = chat.messages[-1].content
    return (UnpairedExample(prompt=chat.messages[:-1], answer=answer, desirable=text in GOOD, where=where),)


def encode_unpaired(
    example: UnpairedExample, template: Template, cutoff_len: int, side: Side = "middle"
) -> tuple[EncodedAnswer, bool]:
    """One judged answer of at most ``cutoff_len`` tokens, its own twin until ``mismatched`` gives it one.

    Returns:
        (answer, was it cut).

    Raises:
        UnusableRowError: if the template alone does not fit.
    """
    (row,), cut = encode_answers(example.prompt, [example.answer], template, cutoff_len, side)
    return EncodedAnswer(row, example.desirable, row), cut


def require_both_kinds(answers: Sequence[EncodedAnswer]) -> None:
    """See that there is something to tell apart.

    Raises:
        UserError: if all answers are good, or all are bad.
    """
    kinds = {answer.desirable for answer in answers}
    if len(kinds) < 2:
        only = "good (true)" if kinds == {True} else "bad (false)"
        raise UserError(
            f"all {len(answers)} answers are {only}: stage kto learns from good and bad ones. Add rows of the other "
            "kind; good answers alone train with stage: sft."
        )


def with_mismatched(answers: Sequence[EncodedAnswer], cutoff_len: int) -> list[EncodedAnswer]:
    """Each prompt with the answer of the row before it that has another prompt; before the first row is the last."""
    prompts = [answer.row.input_ids[: _start(answer.row)] for answer in answers]
    count = len(answers)
    twins = []
    for i, answer in enumerate(answers):
        earlier = ((i - step) % count for step in range(1, count))
        other = next((j for j in earlier if prompts[j] != prompts[i]), (i - 1) % count)
        twins.append(replace(answer, mismatched=_exchanged(answer.row, answers[other].row, cutoff_len)))
    return twins


def _start(row: EncodedRow) -> int:
    """Where the answer begins."""
    return row.loss_mask.index(True)


def _exchanged(row: EncodedRow, other: EncodedRow, cutoff_len: int) -> EncodedRow:
    prompt = row.input_ids[: _start(row)]
    answer = other.input_ids[_start(other) :][: max(cutoff_len - len(prompt), 1)]
    return EncodedRow([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))
