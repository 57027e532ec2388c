"""Execution accuracy of SQL that a model wrote: run on a real database, result sets compared with the gold's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain.errors import UserError
from posttrain.evaluate.intervals import wilson_interval
from posttrain.rewards.sql.compare import extract_sql
from posttrain.rewards.sql.failures import finer_class
from posttrain.rewards.sql.places import Place
from posttrain.rewards.sql.rules import SqlRules
from posttrain.rewards.sql.sandbox import Execution

GOLD_FAILS = "gold_fails"
LEVELS = ("easy", "medium", "hard", "extra", "simple", "moderate", "challenging")


@dataclass(frozen=True)
class Reference:
    """What a gold statement gives on its database; it judges nothing where it does not run."""

    sql: str
    db: Place
    result: Execution

    @property
    def runs(self) -> bool:
        """Whether it can judge."""
        return self.result.rows is not None


@dataclass(frozen=True)
class Outcome:
    """One prediction.

    Attributes:
        error_class: None when right; "gold_fails" where nothing can be said, which then counts nowhere.
        error: the database's message, or that of the gold.
    """

    predicted: str
    gold: str
    correct: bool
    valid: bool
    exact: bool
    error_class: str | None
    error: str | None

    @property
    def is_judged(self) -> bool:
        """Whether the gold ran, so that the prediction could be compared with it."""
        return self.error_class != GOLD_FAILS


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
        num_questions: those whose gold runs; all shares are of them.
        execution_accuracy: share whose result set is the gold's. interval: Wilson's 95 % around it.
        valid_rate: share that runs. exact_match: share equal to the gold up to spelling.
        num_excluded: predictions whose gold does not run. num_empty_gold: questions whose gold finds no row.
        error_classes: class -> count over the wrong ones.
        groups: name such as "language" -> value -> scores.
        outcomes: one per prediction, in order.
    """

    num_questions: int
    execution_accuracy: float
    valid_rate: float
    exact_match: float
    interval: tuple[float, float]
    num_excluded: int
    num_empty_gold: int
    error_classes: Mapping[str, int]
    groups: Mapping[str, Mapping[str, GroupScore]]
    outcomes: tuple[Outcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single outcomes, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if key != "outcomes"}


def references(
    golds: Sequence[str],
    dbs: Sequence[Place],
    rules: SqlRules | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Reference]:
    """Run every gold statement on its database, equal ones once.

    Args:
        golds: reference statements. dbs: their databases, of one length.
        rules: how they are run. progress: called with (run, in all).

    Raises:
        UserError: a database is missing, or not one of the statements runs.
    """
    results = (rules or SqlRules()).executed(list(zip(dbs, golds, strict=True)), progress, are_references=True)
    found = [Reference(*each) for each in zip(golds, dbs, results, strict=True)]
    if found and not any(reference.runs for reference in found):
        first = found[0]
        raise UserError(
            f"none of the {len(found)} gold statements runs, so nothing can be judged. Row 1, on {first.db}: "
            f"{first.result.error}: {first.sql}. {_likely_fix(first.result)}"
        )
    return found


def _likely_fix(result: Execution) -> str:
    if finer_class(result) in ("no_such_table", "no_such_column"):
        return "Is it the right database? The column `db` and `database_dir` say which one"
    return "Is it the database's own SQL? Otherwise name its dialect in `sql_dialect`"


def score_sql(
    predictions: Sequence[str],
    golds: Sequence[str],
    dbs: Sequence[Place],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    rules: SqlRules | None = None,
    known: Sequence[Reference] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SqlReport:
    """Run every prediction and its gold on its database and compare the result sets.

    A prediction whose gold does not run is left out of every share and counted.

    Args:
        predictions: the models' answers, raw; ``extract_sql`` is applied.
        golds: reference statements. dbs: their databases. All three of one length.
        groups: such as {"kind": [...], "language": [...], "hardness": [...]}, one value per prediction.
        rules: how statements are run and compared.
        known: what ``references`` gave for these golds; None runs them.
        progress: called with (scored, in all).

    Raises:
        UserError: lengths differ, a database is missing, or no gold statement runs.
    """
    rules = rules or SqlRules()
    lengths = {len(predictions), len(golds), len(dbs), *(len(values) for values in (groups or {}).values())}
    if len(lengths) != 1:
        raise UserError(f"predictions, golds, databases and groups must have one length, not {sorted(lengths)}")
    known = references(golds, dbs, rules) if known is None else known
    results = rules.executed(list(zip(dbs, predictions, strict=True)), progress)
    outcomes = [_outcome(*each, rules) for each in zip(predictions, known, results, strict=True)]
    return _report(outcomes, known, groups or {})


def _report(outcomes: Sequence[Outcome], known: Sequence[Reference], groups: Mapping[str, Sequence[str]]) -> SqlReport:
    judged = [outcome for outcome in outcomes if outcome.is_judged]
    wrong = Counter(outcome.error_class for outcome in judged if outcome.error_class)
    return SqlReport(
        **vars(_group_score(judged)),
        num_excluded=len(outcomes) - len(judged),
        num_empty_gold=sum(reference.result.rows == () for reference in known),
        error_classes={str(name): count for name, count in wrong.most_common()},
        groups={name: _grouped(outcomes, values) for name, values in groups.items()},
        outcomes=tuple(outcomes),
    )


def _outcome(prediction: str, reference: Reference, result: Execution, rules: SqlRules) -> Outcome:
    sql, gold = extract_sql(prediction), reference.sql
    if not reference.runs:
        return Outcome(sql, gold, False, False, False, GOLD_FAILS, reference.result.error)
    error_class = rules.error_class(gold, reference.result, result)
    exact = rules.is_exact(gold, prediction, reference.db)
    return Outcome(sql, gold, error_class is None, result.error is None, exact, error_class, result.error)


def _grouped(outcomes: Sequence[Outcome], values: Sequence[str]) -> dict[str, GroupScore]:
    parts: dict[str, list[Outcome]] = {}
    for outcome, value in zip(outcomes, values, strict=True):
        if outcome.is_judged:
            parts.setdefault(value, []).append(outcome)
    return {value: _group_score(parts[value]) for value in sorted(parts, key=_place)}


def _place(value: str) -> tuple[int, str]:
    """Levels of hardness in their order, everything else by the alphabet."""
    return (LEVELS.index(value) if value in LEVELS else len(LEVELS)), value


def _group_score(outcomes: Sequence[Outcome]) -> GroupScore:
    count = len(outcomes)
    correct = sum(outcome.correct for outcome in outcomes)
    valid = sum(outcome.valid for outcome in outcomes)
    exact = sum(outcome.exact for outcome in outcomes)
    of = max(count, 1)
    return GroupScore(count, correct / of, valid / of, exact / of, wilson_interval(correct, count))
