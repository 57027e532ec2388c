"""Runs SQL that a model wrote, read-only and under tight limits, on a real SQLite database.

Statements are hostile input. They run on a connection opened read-only, under an authorizer that grants nothing but
reading, with limits on time, rows, bytes, memory, statement length and nesting; nothing else is reachable. The
memory limit is SQLite's own and holds for the whole process once a statement has been run.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.rewards.sql.bounded import MAX_ARGUMENT, LimitError, replace_slow_functions

Row = tuple[Any, ...]

MAX_SQL_LENGTH = 10_000
MAX_VALUE_BYTES = 250_000
MAX_RESULT_BYTES = 50_000_000
MAX_HEAP_BYTES = 64_000_000
_STEPS_PER_CHECK = 500

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: MAX_SQL_LENGTH,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: MAX_ARGUMENT,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
# The last two are harmless but cannot be interrupted on long arguments.
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "glob", "unhex"}
_FORBIDDEN_TABLES = ("sqlite_dbpage", "sqlite_stmt", "dbstat", "pragma_")

_NOISE = re.compile(r"\s+|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$)", re.DOTALL)


@dataclass(frozen=True)
class Execution:
    """What running a statement gave.

    Attributes:
        rows: the result; None when it failed.
        error: SQLite's message or ours; None when it ran.
        columns: names of the result's columns.
        error_class: None, "empty", "not_a_query", "forbidden", "no_such_table", "no_such_column", "syntax",
            "multiple_statements", "timeout", "too_many_rows", "too_big" or "other".
    """

    rows: tuple[Row, ...] | None
    error: str | None = None
    columns: tuple[str, ...] = ()
    error_class: str | None = None


class _Guard:
    """The authorizer and clock of one statement; remembers why it stopped it."""

    def __init__(self, time_limit_s: float) -> None:
        self._deadline = time.monotonic() + time_limit_s
        self.timed_out = False
        self.denied = False
        self.too_big = False

    def late(self) -> int:
        """1 once the time is over, which makes SQLite stop; also SQLite's progress handler."""
        self.timed_out = self.timed_out or time.monotonic() > self._deadline
        return int(self.timed_out)

    def check(self, size: int) -> None:
        """For functions written in Python: stop when the time is over or an argument too long."""
        self.too_big = self.too_big or size > MAX_ARGUMENT
        if self.too_big or self.late():
            raise LimitError("too_big" if self.too_big else "timeout", "a limit was reached")

    def authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        # Called while a statement is prepared too, where the progress handler is not: nested definitions can make
        # preparing alone take forever.
        if self.late():
            return sqlite3.SQLITE_DENY
        allowed = action in _ALLOWED
        if action == sqlite3.SQLITE_FUNCTION:
            allowed = (second or "").lower() not in _FORBIDDEN_FUNCTIONS
        elif action == sqlite3.SQLITE_READ:
            allowed = not (first or "").lower().startswith(_FORBIDDEN_TABLES)
        self.denied = self.denied or not allowed
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def execute(db: Path, sql: str, *, time_limit_s: float = 2.0, row_limit: int = 10_000) -> Execution:
    """Run one model-written statement on ``db`` without being able to change anything.

    Args:
        db: an SQLite file; opened with ``mode=ro``.
        sql: one SELECT, WITH or VALUES statement, at most ``MAX_SQL_LENGTH`` bytes.
        time_limit_s: of preparing and running together.
        row_limit: a longer result is an error, not a cut one.

    Returns:
        Rows, or the error and its class. Text that is not UTF-8 is decoded with replacement characters.

    Raises:
        UserError: ``db`` is missing or no SQLite database: that is not the model's mistake.
    """
    guard = _Guard(time_limit_s)
    try:
        _check_statement(sql)
        with _connection(db, guard) as connection:
            cursor = connection.execute(sql)
            columns = tuple(entry[0] for entry in cursor.description or ())
            return Execution(_fetch(cursor, row_limit, guard), columns=columns)
    except LimitError as refusal:
        return Execution(None, str(refusal), error_class=refusal.error_class)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
        message = str(error)
        if isinstance(error, MemoryError):
            guard.too_big, message = True, "the memory limit was reached"
        return Execution(None, message, error_class=_error_class(message, guard))


def _check_statement(sql: str) -> None:
    if len(sql) > MAX_SQL_LENGTH:
        raise LimitError("too_big", f"the statement is longer than {MAX_SQL_LENGTH} characters")
    if "\x00" in sql:
        raise LimitError("syntax", "the statement contains a null character")
    start = 0
    while match := _NOISE.match(sql, start):
        start = match.end()
    word = re.match(r"\w*", sql[start:])
    first = word.group().upper() if word else ""
    if start == len(sql) or not sql[start:].strip("; \n\t\r"):
        raise LimitError("empty", "there is no statement")
    if first not in ("SELECT", "WITH", "VALUES"):
        raise LimitError("not_a_query", f"not a query: it starts with {sql[start : start + 20]!r}")


@contextlib.contextmanager
def _connection(db: Path, guard: _Guard) -> Iterator[sqlite3.Connection]:
    path = Path(db).resolve()
    if not path.is_file():
        raise UserError(f"{db}: no such database file. Generate the data again or correct the path")
    connection = sqlite3.connect(path.as_uri() + "?mode=ro", uri=True, isolation_level=None)
    try:
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            raise UserError(f"{db}: not a readable SQLite database ({error})") from error
        connection.executescript(f"PRAGMA hard_heap_limit={MAX_HEAP_BYTES}; PRAGMA temp_store=MEMORY;")
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        replace_slow_functions(connection, guard.check, MAX_VALUE_BYTES)
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        connection.set_progress_handler(guard.late, _STEPS_PER_CHECK)
        connection.set_authorizer(guard.authorize)
        yield connection
    finally:
        connection.close()


def _fetch(cursor: sqlite3.Cursor, row_limit: int, guard: _Guard) -> tuple[Row, ...]:
    rows: list[Row] = []
    size = 0
    for row in cursor:
        size += sum(len(cell) if isinstance(cell, str | bytes) else 8 for cell in row)
        if len(rows) >= row_limit:
            raise LimitError("too_many_rows", f"the result has more than {row_limit} rows")
        if size > MAX_RESULT_BYTES:
            raise LimitError("too_big", f"the result is larger than {MAX_RESULT_BYTES} bytes")
        if guard.late():
            raise LimitError("timeout", "the time limit was reached")
        rows.append(row)
    return tuple(rows)


def _error_class(message: str, guard: _Guard) -> str:
    text = message.lower()
    if guard.timed_out or text == "interrupted":
        return "timeout"
    if guard.too_big:
        return "too_big"
    if guard.denied or "not authorized" in text or "prohibited" in text or "readonly" in text:
        return "forbidden"
    for part, error_class in (
        ("no such table", "no_such_table"),
        ("no such column", "no_such_column"),
        ("has no column", "no_such_column"),
        ("too big", "too_big"),
        ("too long", "too_big"),
        ("too large", "too_big"),
        ("too many", "too_big"),
        ("overflow", "too_big"),
        ("syntax error", "syntax"),
        ("incomplete input", "syntax"),
        ("unrecognized token", "syntax"),
        ("one statement at a time", "multiple_statements"),
    ):
        if part in text:
            return error_class
    return "other"
