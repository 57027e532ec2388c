"""Execution accuracy of SQL that a model wrote: run on a real database, result sets compared with the gold's."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.evaluate.intervals import wilson_interval
from posttrain.evaluate.sandbox import Execution, Row, execute

__all__ = [
    "Execution",
    "GroupScore",
    "Outcome",
    "SqlReport",
    "execute",
    "extract_sql",
    "is_ordered",
    "normalized",
    "same_result",
    "score_sql",
]

_GREEDY_LIMIT = 1000

_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|[\w$]+|[^\w\s]""", re.DOTALL
)
_FENCE = re.compile(r"```[ \t]*(?:\w+[ \t]*(?=\n|$)|(?:sqlite|sql)\b)?(.*?)(?:```|$)", re.DOTALL | re.IGNORECASE)


def is_ordered(sql: str) -> bool:
    """True when the outermost statement has ORDER BY (those in subqueries, strings and comments do not count)."""
    depth, previous = 0, ""
    for token in _TOKEN.findall(sql):
        depth += (token == "(") - (token == ")")
        word = token.upper()
        if depth == 0 and previous == "ORDER" and word == "BY":
            return True
        previous = word if not token.startswith(("--", "/*")) else previous
    return False


def same_result(gold: Execution, predicted: Execution, *, ordered: bool) -> bool:
    """Whether two executions gave the same table.

    Both must have run. The number of columns and their order count, their names do not. Rows are compared as a
    multiset (repeated rows count), or as a sequence when ``ordered``. Two integers, texts or blobs must be equal; a
    float equals a number within a relative 1e-6 (absolute 1e-9); NULL equals only NULL; text never equals a number.

    Args:
        gold: of the reference statement. predicted: of the model's.
        ordered: compare row by row; pass ``is_ordered(gold_sql)``.
    """
    if gold.rows is None or predicted.rows is None or len(gold.rows) != len(predicted.rows):
        return False
    if ordered:
        return all(map(_same_row, gold.rows, predicted.rows))
    missing = Counter(map(_typed, gold.rows))
    surplus = Counter(map(_typed, predicted.rows))
    # Exactly equal rows cancel; what remains can only be equal within the tolerance.
    left = [_untyped(row) for row in (missing - surplus).elements()]
    right = [_untyped(row) for row in (surplus - missing).elements()]
    return len(left) == len(right) and _matched(left, right)


def _typed(row: Row) -> tuple[tuple[str, Any], ...]:
    # 1 == 1.0 == True in Python, so the type stands beside the value.
    return tuple((type(cell).__name__, cell) for cell in row)


def _untyped(row: tuple[tuple[str, Any], ...]) -> Row:
    return tuple(cell for _, cell in row)


def _matched(left: list[Row], right: list[Row]) -> bool:
    if len(left) > _GREEDY_LIMIT:
        return all(map(_same_row, sorted(left, key=_rank), sorted(right, key=_rank)))
    for row in left:
        place = next((i for i, other in enumerate(right) if _same_row(row, other)), None)
        if place is None:
            return False
        del right[place]
    return True


def _rank(row: Row) -> tuple[tuple[int, Any], ...]:
    """A sorting key over mixed types, equal for numbers that differ only by rounding."""
    return tuple(
        (0, 0)
        if cell is None
        else (1, float(f"{cell:.9g}"))
        if isinstance(cell, int | float)
        else (2 + isinstance(cell, bytes), cell)
        for cell in row
    )


def _same_row(a: Row, b: Row) -> bool:
    return len(a) == len(b) and all(map(_same_cell, a, b))


def _same_cell(a: Any, b: Any) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    return type(a) is type(b) and bool(a == b)


def extract_sql(text: str) -> str:
    """The statement in a model's answer.

    With a code fence, the content of the first one, whatever stands around it; without one, the whole text: prose
    before a bare statement is the model's mistake and stays. White space and closing semicolons are removed.
    """
    fence = _FENCE.search(text)
    return (fence.group(1) if fence else text).strip().rstrip("; \n\t\r")


def normalized(sql: str) -> str:
    """The statement in tokens with single spaces, lower case outside quotes, without comments: for exact match."""
    tokens = (t for t in _TOKEN.findall(extract_sql(sql)) if not t.startswith(("--", "/*")))
    return " ".join(token if token[0] in "'\"`[" else token.lower() for token in tokens)


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
    dbs: Sequence[Path],
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
        outcomes.append(_outcome(prediction, gold, expected, Path(db), time_limit_s, row_limit))
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


def _outcome(prediction: str, gold: str, expected: Execution, db: Path, time_limit_s: float, row_limit: int) -> Outcome:
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
