"""Execution accuracy of SQL that a model wrote: run on a real database, result sets compared with the gold's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.errors import UserError
from posttrain.evaluate.intervals import wilson_interval
from posttrain.rewards.sql.compare import extract_sql, is_ordered, normalized, same_result
from posttrain.rewards.sql.sandbox import Execution, Place, execute


@dataclass(frozen=True)
class Outcome:
    """One scored prediction; ``error_class`` is None when right and "wrong_result" when it ran but differs."""

    predicted: str
    gold: str
    correct: bool
    valid: bool
    exact: bool
    error_class: str | None
    error: str | None


@dataclass(frozen=True)
class GroupScore:
    """A part of the questions: ``interval`` is Wilson's 95 % around ``execution_accuracy``."""

    num_questions: int
    execution_accuracy: float
    valid_rate: float
    exact_match: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class SqlReport:
    """Scores of a set of predictions.

    Attributes:
        execution_accuracy: share whose result set is the gold's. interval: Wilson's 95 % around it.
        valid_rate: share that runs. exact_match: share equal to the gold up to white space and case.
        error_classes: class -> count over the wrong ones.
        groups: name such as "language" -> value -> scores.
        outcomes: one per prediction, in order.
    """

    num_questions: int
    execution_accuracy: float
    valid_rate: float
    exact_match: float
    interval: tuple[float, float]
    error_classes: Mapping[str, int]
    groups: Mapping[str, Mapping[str, GroupScore]]
    outcomes: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single outcomes, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "outcomes"}


def score_sql(
    predictions: Sequence[str],
    golds: Sequence[str],
    dbs: Sequence[Place],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    time_limit_s: float = 2.0,
    row_limit: int = 10_000,
    progress: Callable[[int, int], None] | None = None,
) -> SqlReport:
    """Run every prediction and its gold on its database and compare the result sets.

    Args:
        predictions: the models' answers, raw; ``extract_sql`` is applied.
        golds: reference statements. dbs: their databases. All three of one length.
        groups: such as {"kind": [...], "language": [...], "hardness": [...]}, one value per prediction.
        time_limit_s, row_limit: as in ``execute``.
        progress: called with (scored, in all).

    Raises:
        UserError: lengths differ, a database is missing, or a gold statement does not run.
    """
    lengths = {len(predictions), len(golds), len(dbs), *(len(values) for values in (groups or {}).values())}
    if len(lengths) != 1:
        raise UserError(f"predictions, golds, databases and groups must have one length, not {sorted(lengths)}")
    outcomes = []
    known: dict[tuple[str, str], Execution] = {}
    for i, (prediction, gold, db) in enumerate(zip(predictions, golds, dbs, strict=True)):
        expected = known.get((str(db), gold))
        if expected is None:
            expected = execute(db, extract_sql(gold), time_limit_s=time_limit_s, row_limit=row_limit)
            known[str(db), gold] = expected
        if expected.error is not None:
            raise UserError(f"row {i + 1}: the gold statement does not run on {db}: {expected.error}: {gold}")
        outcomes.append(_outcome(prediction, gold, expected, db, time_limit_s, row_limit))
        if progress:
            progress(i + 1, len(predictions))
    total = _group_score(outcomes)
    wrong = Counter(outcome.error_class for outcome in outcomes if outcome.error_class)
    return SqlReport(
        **vars(total),
        error_classes=dict(wrong.most_common()),
        groups={name: _grouped(outcomes, values) for name, values in (groups or {}).items()},
        outcomes=tuple(outcomes),
    )


def _outcome(
    prediction: str, gold: str, expected: Execution, db: Place, time_limit_s: float, row_limit: int
) -> Outcome:
    sql = extract_sql(prediction)
    result = execute(db, sql, time_limit_s=time_limit_s, row_limit=row_limit)
    correct = same_result(expected, result, ordered=is_ordered(gold))
    error_class = None if correct else result.error_class or "wrong_result"
    exact = normalized(sql) == normalized(gold)
    return Outcome(sql, gold, correct, result.error is None, exact, error_class, result.error)


def _grouped(outcomes: Sequence[Outcome], values: Sequence[str]) -> dict[str, GroupScore]:
    parts: dict[str, list[Outcome]] = {}
    for outcome, value in zip(outcomes, values, strict=True):
        parts.setdefault(value, []).append(outcome)
    return {value: _group_score(parts[value]) for value in sorted(parts)}


def _group_score(outcomes: Sequence[Outcome]) -> GroupScore:
    count = len(outcomes)
    correct = sum(outcome.correct for outcome in outcomes)
    valid = sum(outcome.valid for outcome in outcomes)
    exact = sum(outcome.exact for outcome in outcomes)
    of = max(count, 1)
    return GroupScore(count, correct / of, valid / of, exact / of, wilson_interval(correct, count))
