"""Whether a model's SQL gives the rows of the reference: the statement in its answer, and two results compared."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from posttrain.rewards.sql.sandbox import Execution, Row

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
