"""Verdicts and scores -> preference pairs, with an account of those that gave none."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.data.answers import AnswersExample, as_rows
from posttrain.rewards.verdicts import Verdict

Kind = Literal["decided", "tie", "disagreed", "undecided"]

# (row, answer shown first, answer shown second) -> what the judge said
Verdicts = Mapping[tuple[int, int, int], Verdict | None]
# (row, answer) -> its score
Scores = Mapping[tuple[int, int], float | None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of two answers to one prompt.

    Attributes:
        row: of the prompt. first, second: places of the answers, in the order of the data.
        kind: "decided", or why there is no pair: a tie; two orders of which the verdicts differ; no verdict.
        chosen: place of the better answer, None unless decided.
        votes: verdicts for it. scores: of the better and the worse answer, where answers were scored.
    """

    row: int
    first: int
    second: int
    kind: Kind
    chosen: int | None = None
    votes: int = 0
    scores: tuple[float, float] | None = None

    @property
    def rejected(self) -> int | None:
        """Place of the worse answer, None unless decided."""
        return None if self.chosen is None else self.first + self.second - self.chosen


def pairs_of(num_answers: int, limit: int | None = None) -> list[tuple[int, int]]:
    """Pairs of answers to one prompt, neighbours first, so that a few pairs take in many answers."""
    pairs = itertools.combinations(range(num_answers), 2)
    return sorted(pairs, key=lambda pair: (pair[1] - pair[0], pair))[:limit]


def voted(row: int, pair: tuple[int, int], verdicts: Verdicts, *, swap: bool) -> Outcome:
    """The outcome of the verdicts on a pair, shown in both orders where ``swap``."""
    first, second = pair
    shown = [(first, second), (second, first)] if swap else [(first, second)]
    found: list[int | str | None] = []
    for a, b in shown:
        verdict = verdicts.get((row, a, b))
        found.append({"A": a, "B": b, "tie": "tie", None: None}[verdict])
    if None in found:
        return Outcome(row=row, first=first, second=second, kind="undecided")
    if len(set(found)) > 1:
        return Outcome(row=row, first=first, second=second, kind="disagreed")
    if found[0] == "tie":
        return Outcome(row=row, first=first, second=second, kind="tie")
    chosen = first if found[0] == first else second
    return Outcome(row=row, first=first, second=second, kind="decided", chosen=chosen, votes=len(found))


def scored(row: int, num_answers: int, scores: Scores, *, min_margin: float, limit: int | None) -> list[Outcome]:
    """The outcomes of the scores of a prompt's answers; with a ``limit``, of the pairs that lie furthest apart."""
    found = []
    for first, second in pairs_of(num_answers):
        one, other = scores.get((row, first)), scores.get((row, second))
        if one is None or other is None:
            found.append(Outcome(row=row, first=first, second=second, kind="undecided"))
        elif abs(one - other) <= min_margin:
            found.append(Outcome(row=row, first=first, second=second, kind="tie"))
        else:
            best, worst = max(one, other), min(one, other)
            chosen = first if one > other else second
            found.append(
                Outcome(row=row, first=first, second=second, kind="decided", chosen=chosen, scores=(best, worst))
            )
    return sorted(found, key=_distance, reverse=True)[:limit] if limit else found


def preference_rows(
    examples: Sequence[AnswersExample], outcomes: Sequence[Outcome], judge: str
) -> list[dict[str, Any]]:
    """The decided pairs as stages rm and dpo read them, in the order of the outcomes.

    Returns:
        Rows with ``prompt`` (messages), ``chosen``, ``rejected``, the judge's name, and ``votes`` or ``margin`` with
        both scores.
    """
    rows = []
    for outcome in outcomes:
        if outcome.chosen is None or outcome.rejected is None:
            continue
        example = examples[outcome.row]
        row: dict[str, Any] = {
            "prompt": as_rows(example.prompt),
            "chosen": example.answers[outcome.chosen],
            "rejected": example.answers[outcome.rejected],
        }
        if outcome.scores is None:
            row["votes"] = outcome.votes
        else:
            best, worst = outcome.scores
            row |= {"margin": best - worst, "chosen_score": best, "rejected_score": worst}
        rows.append({**row, "judge": judge})
    return rows


def account(examples: Sequence[AnswersExample], outcomes: Sequence[Outcome], verdicts: Verdicts) -> dict[str, Any]:
    """The numbers of ``label_results.json`` that the outcomes give.

    ``label_order_agreement``: share of the pairs with a verdict in both orders on which the two agree;
    ``label_first_share``: share of verdicts for one answer that name the one shown first, 0.5 without a bias;
    ``label_longer_share``: share of pairs whose better side is the longer one;
    ``label_agreement``: share of the decided pairs of a preference dataset that the judge ranks as the data do.
    """
    kinds = [outcome.kind for outcome in outcomes]
    decided = [outcome for outcome in outcomes if outcome.chosen is not None]
    found: dict[str, Any] = {
        "label_num_rows": len(examples),
        "label_num_compared": len(outcomes),
        "label_num_pairs": len(decided),
        "label_ties": kinds.count("tie"),
        "label_disagreed": kinds.count("disagreed"),
        "label_undecided": kinds.count("undecided"),
    }
    both = [o for o in outcomes if {(o.row, o.first, o.second), (o.row, o.second, o.first)} <= verdicts.keys()]
    found |= _share("label_order_agreement", [o.kind != "disagreed" for o in both if o.kind != "undecided"])
    found |= _share("label_first_share", [said == "A" for said in verdicts.values() if said in ("A", "B")])
    found |= _share("label_longer_share", [_is_longer(examples[o.row], o) for o in decided])
    found |= _share("label_agreement", [o.chosen == 0 for o in decided if examples[o.row].is_ranked])
    return found


def _share(name: str, held: Sequence[bool]) -> dict[str, float]:
    """The share of those that hold under a name; nothing where there are none to count."""
    return {name: sum(held) / len(held)} if held else {}


def _is_longer(example: AnswersExample, outcome: Outcome) -> bool:
    assert outcome.chosen is not None
    assert outcome.rejected is not None
    return len(example.answers[outcome.chosen]) > len(example.answers[outcome.rejected])


def _distance(outcome: Outcome) -> float:
    return outcome.scores[0] - outcome.scores[1] if outcome.scores else -1.0
