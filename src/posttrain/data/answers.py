"""Rows with several answers to one prompt: what a judge compares."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.config import DataConfig
from posttrain.data.columns import Question, row_layout
from posttrain.data.datasets import dataset_table
from posttrain.data.encode import Report
from posttrain.data.formats import (
    Layout,
    Message,
    Messages,
    UnusableRowError,
    pair_example,
    prompt_example,
)
from posttrain.errors import UserError

PREDICTED = "predict"
ANSWER_COLUMNS = ("answers", "responses", "completions", "outputs", "output", "response", "answer", "completion")
SAME = "all answers are the same"


@dataclass(frozen=True, kw_only=True)
class AnswersExample:
    """A prompt and its answers, no two of them the same.

    Attributes:
        prompt: messages, the last one the user's. answers: at least two.
        is_ranked: the data call the first of two answers the better one.
    """

    prompt: Messages
    answers: tuple[str, ...]
    is_ranked: bool = False
    where: str = field(default="", compare=False)


def read_answers(names: Iterable[str], data: DataConfig, report: Report) -> list[AnswersExample] | None:
    """The rows of several datasets with their answers; None where the datasets hold prompts without any to compare.

    Read: preference rows (``chosen`` and ``rejected``, or an answer column with two texts), what ``posttrain generate``
    writes with ``num_return_sequences`` above 1, and prompts beside a list of answers in one of ``ANSWER_COLUMNS``.

    Args:
        names: entries of ``dataset_info.json`` or paths. data: where they lie, and how many rows to take.
        report: rows that cannot be compared are counted there.

    Raises:
        UserError: a malformed row, or datasets of which only some have answers.
    """
    found: dict[str, list[AnswersExample] | None] = {name: _read(name, data, report) for name in names}
    with_answers = [name for name, rows in found.items() if rows is not None]
    if not with_answers:
        return None
    bare = [name for name, rows in found.items() if rows is None]
    if bare:
        raise UserError(
            f"dataset: {with_answers[0]} holds answers to compare and {bare[0]} holds prompts without; label them one "
            "after the other, each into a file of its own"
        )
    rows = [row for name in with_answers for row in found[name] or ()]
    if not rows:
        reason, count = report.dropped.most_common(1)[0]
        raise UserError(f"no row is left to label: {count} dropped: {reason} (first: {report.first_dropped[reason]})")
    return rows


def distinct(answers: Iterable[str]) -> tuple[str, ...]:
    """Each answer once, in the order in which they first occur.

    Raises:
        UnusableRowError: fewer than two are left.
    """
    found = tuple(dict.fromkeys(answers))
    if len(found) < 2:
        raise UnusableRowError(SAME)
    return found


def as_rows(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Messages as they stand in a file: ``{"role": ..., "content": ...}``."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _read(name: str, data: DataConfig, report: Report) -> list[AnswersExample] | None:
    spec, table = dataset_table(name, data)
    first_place, first = table[0]
    names = set().union(*(row for _, row in table))
    question = Question.configured(data)
    layout = row_layout(spec.layout, [first], first_place, data, names)
    if not _has_answers(first, layout, names):
        return None
    found = []
    for where, row in table:
        report.rows_read += 1
        try:
            found.append(_example(row if question is None else question.put_into(row, where), layout, where))
            report.kept += 1
        except UnusableRowError as unusable:
            report.drop(unusable.reason, where)
    return found


def _has_answers(row: Mapping[str, Any], layout: Layout, names: Collection[str]) -> bool:
    return "chosen" in layout.columns or PREDICTED in names or _answer_column(row) is not None


def _answer_column(row: Mapping[str, Any]) -> str | None:
    return next((name for name in ANSWER_COLUMNS if isinstance(row.get(name), list)), None)


def _example(row: Mapping[str, Any], layout: Layout, where: str) -> AnswersExample:
    response = layout.columns.get("response")
    ranked = response is not None and isinstance(row.get(response), list) and len(row[response]) == 2
    if "chosen" in layout.columns or ranked:
        pair = pair_example(row, layout, where, None)
        return AnswersExample(prompt=pair.prompt, answers=(pair.chosen, pair.rejected), is_ranked=True, where=where)
    column = PREDICTED if PREDICTED in row else _answer_column(row)
    if column is None:
        raise UserError(f"{where}: no list of answers, as the first row has it (found: {', '.join(map(str, row))})")
    answers = row[column]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        more = "; with num_return_sequences above 1 `posttrain generate` writes several" if column == PREDICTED else ""
        raise UserError(f"{where}: column {column!r} must be a list of texts to compare{more}")
    if column == PREDICTED and "messages" not in layout.columns:
        raise UserError(
            f"{where}: the prompt is text that was rendered for a model, without the column `messages` that `posttrain "
            "generate` writes beside it; generate the answers again, or give the questions as `dataset`"
        )
    prompt = _waiting(prompt_example(row, layout, where).prompt, where)
    return AnswersExample(prompt=prompt, answers=distinct(answers), where=where)


def _waiting(messages: Messages, where: str) -> Messages:
    """The messages, which must end with one that waits for an answer."""
    if not messages or messages[-1].role not in ("user", "tool"):
        raise UserError(f"{where}: the prompt must end with a user message")
    return messages
