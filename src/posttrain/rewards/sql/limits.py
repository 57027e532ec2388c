"""What a model-written statement may cost, wherever it is run, and what is refused before it is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

Row = tuple[Any, ...]

MAX_SQL_LENGTH = 10_000
MAX_VALUE_BYTES = 1_000_000
MAX_RESULT_BYTES = 20_000_000
GRACE_S = 0.5
"""How much longer than its limit a statement may take that nothing but the end of its process stops."""

_NOISE = r"\s+|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$)"
_BEFORE_A_QUERY = re.compile(_NOISE, re.DOTALL)
_BEFORE_A_QUERY_IN_BRACKETS = re.compile(_NOISE + r"|\(+", re.DOTALL)


class LimitError(Exception):
    """A limit was reached; ``error_class`` says which."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class PlaceError(Exception):
    """The database cannot be used: the user's mistake, not the statement's."""


def check_statement(sql: str, first_words: tuple[str, ...], *, may_have_brackets: bool = False) -> None:
    """Refuse what cannot be one query, by its length, its characters and its first word.

    Args:
        sql: the statement. first_words: what a query may begin with, in capitals.
        may_have_brackets: whether the first word may stand behind brackets.

    Raises:
        LimitError: says why.
    """
    if len(sql) > MAX_SQL_LENGTH:
        raise LimitError("too_big", f"the statement is longer than {MAX_SQL_LENGTH} characters")
    if "\x00" in sql:
        raise LimitError("syntax", "the statement contains a null character")
    try:
        sql.encode()
    except UnicodeEncodeError:
        raise LimitError("syntax", "the statement contains half a character (a lone surrogate)") from None
    before = _BEFORE_A_QUERY_IN_BRACKETS if may_have_brackets else _BEFORE_A_QUERY
    start = 0
    while match := before.match(sql, start):
        start = match.end()
    if not sql[start:].strip("; \n\t\r"):
        raise LimitError("empty", "there is no statement")
    word = re.match(r"\w*", sql[start:])
    if (word.group().upper() if word else "") not in first_words:
        raise LimitError("not_a_query", f"not a query: it starts with {sql[start : start + 20]!r}")


def fetched(rows: Iterable[Row], row_limit: int, is_late: Callable[[], Any]) -> list[Row]:
    """All rows of a result that keeps the limits.

    Args:
        rows: as they come. row_limit: a longer result is an error, not a cut one. is_late: whether the time is over.

    Raises:
        LimitError: there are more rows, more bytes, or they take longer.
    """
    found: list[Row] = []
    size = 0
    for row in rows:
        size += sum(len(cell) if isinstance(cell, str | bytes) else 8 for cell in row)
        if len(found) >= row_limit:
            raise LimitError("too_many_rows", f"the result has more than {row_limit} rows")
        if size > MAX_RESULT_BYTES:
            raise LimitError("too_big", f"the result is larger than {MAX_RESULT_BYTES} bytes")
        if is_late():
            raise LimitError("timeout", "the time limit was reached")
        found.append(row)
    return found
