"""Whether a model's SQL gives the rows of the reference: the statement in its answer, and two results compared."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.rewards.sql.cells import is_same, plain, rank
from posttrain.rewards.sql.sandbox import Execution, Row

ColumnOrder = Literal["position", "any"]
Rows = tuple[Row, ...]

WRONG_RESULTS = (
    "wrong_columns",
    "wrong_order",
    "wrong_column_order",
    "empty_result",
    "wrong_duplicates",
    "wrong_row_count",
    "wrong_values",
)
"""How a result can differ: number of columns, order of rows, order of columns, nothing found, the same rows another
number of times, another number of rows, other values."""

_GREEDY_LIMIT = 1000
_MAX_COLUMN_TRIES = 500

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


def same_result(
    gold: Execution, predicted: Execution, *, ordered: bool, column_order: ColumnOrder = "position"
) -> bool:
    """Whether two executions gave the same table.

    Both must have run. Names of columns do not count, their number does, also of results without rows. Rows are
    compared as a multiset (repeated rows count), or as a sequence when ``ordered``; cells as in ``cells.is_same``.

    Args:
        gold: of the reference statement. predicted: of the model's.
        ordered: compare row by row; pass ``is_ordered(gold_sql)``.
        column_order: "position" compares the first column with the first and so on; "any" asks whether some order of
            the predicted columns makes the tables equal, as Spider's test suites do.
    """
    if gold.rows is None or predicted.rows is None or len(gold.rows) != len(predicted.rows):
        return False
    return _is_same_table(_Table.of(gold), _Table.of(predicted), ordered, column_order)


def difference(gold: Execution, predicted: Execution, *, ordered: bool, column_order: ColumnOrder = "position") -> str:
    """In what way a result that ran is not the gold's; empty where it is.

    Args:
        gold, predicted, ordered, column_order: as in ``same_result``; both have run.

    Returns:
        One of ``WRONG_RESULTS``, the first that fits, or "".
    """
    left, right = _Table.of(gold), _Table.of(predicted)
    if _is_same_table(left, right, ordered, column_order):
        return ""
    if _widths_differ(left, right):
        return "wrong_columns"
    if ordered and _is_same_table(left, right, False, column_order):
        return "wrong_order"
    if column_order == "position" and _is_same_table(left, right, ordered, "any"):
        return "wrong_column_order"
    if not right.rows:
        return "empty_result"
    if set(map(_typed, left.rows)) == set(map(_typed, right.rows)):
        return "wrong_duplicates"
    return "wrong_row_count" if len(left.rows) != len(right.rows) else "wrong_values"


@dataclass(frozen=True)
class _Table:
    """Plain rows, and how many columns they have; None where neither rows nor names tell."""

    rows: Rows
    width: int | None

    @classmethod
    def of(cls, execution: Execution) -> _Table:
        rows = tuple(tuple(map(plain, row)) for row in execution.rows or ())
        return cls(rows, len(rows[0]) if rows else len(execution.columns) or None)


def _widths_differ(left: _Table, right: _Table) -> bool:
    return None not in (left.width, right.width) and left.width != right.width


def _is_same_table(left: _Table, right: _Table, ordered: bool, column_order: ColumnOrder) -> bool:
    if len(left.rows) != len(right.rows) or _widths_differ(left, right):
        return False
    if _are_same_rows(left.rows, right.rows, ordered):
        return True
    return column_order == "any" and bool(left.rows) and _Columns(left.rows, right.rows, ordered).can_be_ordered()


class _Columns:
    """The search for an order of the predicted columns, one gold column after the other, within a budget."""

    def __init__(self, left: Rows, right: Rows, ordered: bool) -> None:
        self._left, self._right, self._ordered = left, right, ordered
        self._width = len(left[0])
        self._budget = _MAX_COLUMN_TRIES

    def can_be_ordered(self, chosen: tuple[int, ...] = ()) -> bool:
        """Whether the columns ``chosen`` for the first gold ones can be completed."""
        if len(chosen) == self._width:
            return True
        tried = set()
        for column in range(self._width):
            content = tuple(map(_typed, ((row[column],) for row in self._right)))
            if column in chosen or content in tried or not self._budget:
                continue
            tried.add(content)
            self._budget -= 1
            if self._fits((*chosen, column)) and self.can_be_ordered((*chosen, column)):
                return True
        return False

    def _fits(self, chosen: tuple[int, ...]) -> bool:
        left = tuple(row[: len(chosen)] for row in self._left)
        return _are_same_rows(left, tuple(tuple(row[c] for c in chosen) for row in self._right), self._ordered)


def _are_same_rows(left: Rows, right: Rows, ordered: bool) -> bool:
    if ordered:
        return all(map(_same_row, left, right))
    missing = Counter(map(_typed, left))
    surplus = Counter(map(_typed, right))
    # Exactly equal rows cancel; what remains can only be equal within the tolerance.
    only_left = [_untyped(row) for row in (missing - surplus).elements()]
    only_right = [_untyped(row) for row in (surplus - missing).elements()]
    return len(only_left) == len(only_right) and _matched(only_left, only_right)


def _typed(row: Row) -> tuple[tuple[str, Any], ...]:
    # 1 == 1.0 in Python, so the type stands beside the value.
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
    return tuple(map(rank, row))


def _same_row(a: Row, b: Row) -> bool:
    return len(a) == len(b) and all(map(is_same, a, b))


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
