"""Rankings: several answers to one prompt, from the best to the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from posttrain.data.encode import Side, encode_answers
from posttrain.data.formats import Layout, PairExample, RankingExample, UnusableRowError, pair_example
from posttrain.data.template import EncodedRow, Template


@dataclass(frozen=True, slots=True)
class EncodedRanking:
    """Answers with the same prompt, the best first, each a sequence whose answer trains."""

    rows: tuple[EncodedRow, ...]

    def __len__(self) -> int:
        return max(map(len, self.rows))


def is_ranking(row: Mapping[str, Any], layout: Layout) -> bool:
    """Whether the answer column holds a list of more than two answers."""
    column = layout.columns.get("response")
    answers = row.get(column) if column and "chosen" not in layout.columns else None
    return isinstance(answers, list) and len(answers) > 2


def ranking_example(row: Mapping[str, Any], layout: Layout, where: str) -> RankingExample:
    """The row as a ranking; an answer that stands there twice keeps its better place.

    Raises:
        UserError: if a column is missing or malformed.
        UnusableRowError: if all answers are the same.
    """
    column = layout.columns["response"]
    answers: list[str] = []
    prompt = None
    for better, worse in combinations(row[column], 2):
        try:
            pair = pair_example({**row, column: [better, worse]}, layout, where, None)
        except UnusableRowError:
            continue
        prompt = pair.prompt
        answers += [answer for answer in (pair.chosen, pair.rejected) if answer not in answers]
    if prompt is None:
        raise UnusableRowError("all ranked answers are the same")
    return RankingExample(prompt=prompt, answers=tuple(answers), where=where)


def pairs_of(example: RankingExample) -> tuple[PairExample, ...]:
    """Every better answer against every worse one, for stages that take pairs."""
    return tuple(
        PairExample(prompt=example.prompt, chosen=better, rejected=worse, where=example.where)
        for better, worse in combinations(example.answers, 2)
    )


def encode_ranking(
    example: RankingExample, template: Template, cutoff_len: int, side: Side = "middle"
) -> tuple[EncodedRanking, bool]:
    """The answers of a ranking, cut the same way to at most ``cutoff_len`` tokens each.

    Returns:
        (ranking, was it cut).

    Raises:
        UnusableRowError: if the template alone does not fit, or cutting left one answer.
    """
    rows, cut = encode_answers(example.prompt, example.answers, template, cutoff_len, side)
    distinct: Sequence[EncodedRow] = list({tuple(row.input_ids): row for row in reversed(rows)}.values())[::-1]
    if len(distinct) < 2:
        raise UnusableRowError("all ranked answers are the same after cutting to cutoff_len")
    return EncodedRanking(tuple(distinct)), cut
