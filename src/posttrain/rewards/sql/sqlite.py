"""One model-written statement on an SQLite file: read-only, under an authorizer that grants nothing but reading.

Called in a process of its own (see ``worker``), which ends where a statement sits in one long call of SQLite's, such
as a LIKE over large texts, that no handler interrupts.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.rewards.sql.limits import MAX_SQL_LENGTH, MAX_VALUE_BYTES, LimitError, PlaceError, fetched

MAX_HEAP_BYTES = 64_000_000
_STEPS_PER_CHECK = 500
_WAL_VERSION = b"\x02\x02"

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4 * MAX_SQL_LENGTH,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 100,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "sqlite_log"}
# Tables that are there without being created, and show or touch more than rows.
_FORBIDDEN_TABLES = {"bytecode", "tables_used", "fsdir"}
_FORBIDDEN_BEGINNINGS = ("pragma_", "sqlite_dbpage", "sqlite_dbdata", "sqlite_dbptr", "sqlite_stmt", "dbstat")
_CLASSES = (
    ("no such table", "no_such_table"),
    ("no such column", "no_such_column"),
    ("has no column", "no_such_column"),
    ("too big", "too_big"),
    ("too long", "too_big"),
    ("too large", "too_big"),
    ("too many", "too_big"),
    ("too complex", "too_big"),
    ("overflow", "too_big"),
    ("out of memory", "too_big"),
    ("syntax error", "syntax"),
    ("incomplete input", "syntax"),
    ("unrecognized token", "syntax"),
    ("one statement at a time", "multiple_statements"),
)


class _Guard:
    """The authorizer and clock of one statement; remembers why it stopped it."""

    def __init__(self, time_limit_s: float) -> None:
        self._deadline = time.monotonic() + time_limit_s
        self.timed_out = False
        self.denied = False

    def late(self) -> int:
        """1 once the time is over, which makes SQLite stop; also SQLite's progress handler."""
        self.timed_out = self.timed_out or time.monotonic() > self._deadline
        return int(self.timed_out)

    def authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        # Called while a statement is prepared too, where the progress handler is not: nested definitions can make
        # preparing alone take forever.
        if self.late():
            return sqlite3.SQLITE_DENY
        allowed = action in _ALLOWED
        if action == sqlite3.SQLITE_FUNCTION:
            allowed = (second or "").lower() not in _FORBIDDEN_FUNCTIONS
        elif action == sqlite3.SQLITE_READ:
            table = (first or "").lower()
            allowed = table not in _FORBIDDEN_TABLES and not table.startswith(_FORBIDDEN_BEGINNINGS)
        self.denied = self.denied or not allowed
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def run(path: str, sql: str, *, time_limit_s: float, row_limit: int) -> dict[str, Any]:
    """What one statement gives, as a worker answers it.

    Args:
        path: of the file; opened with ``mode=ro``. sql: the statement.
        time_limit_s: of preparing and running together. row_limit: a longer result is an error.

    Returns:
        ``rows`` and ``columns``, or ``error`` and ``error_class``. Text that is not UTF-8 has replacement characters.

    Raises:
        PlaceError: the file is no SQLite database, or locked all the time.
    """
    guard = _Guard(time_limit_s)
    try:
        with _connection(Path(path), guard, time_limit_s) as connection:
            cursor = connection.execute(sql)
            columns = [entry[0] for entry in cursor.description or ()]
            return {"rows": fetched(cursor, row_limit, guard.late), "columns": columns}
    except LimitError as refusal:
        return {"error": str(refusal), "error_class": refusal.error_class}
    except MemoryError:
        return {"error": "the memory limit was reached", "error_class": "too_big"}
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        if "database is locked" in str(error):
            raise PlaceError(f"{path}: another program holds a lock on it; run again once that is done") from error
        return {"error": str(error), "error_class": _error_class(str(error), guard)}


@contextlib.contextmanager
def _connection(path: Path, guard: _Guard, patience_s: float) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(
        _address(path), uri=True, isolation_level=None, cached_statements=0, timeout=patience_s
    )
    try:
        try:
            # Memory first: a file that is none of ours could ask for much.
            connection.executescript(
                f"PRAGMA hard_heap_limit={MAX_HEAP_BYTES}; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF;"
            )
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.DatabaseError as error:
            if "database is locked" in str(error):
                raise
            raise PlaceError(f"{path}: not a readable SQLite database ({error})") from error
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        connection.set_progress_handler(guard.late, _STEPS_PER_CHECK)
        connection.set_authorizer(guard.authorize)
        yield connection
    finally:
        connection.close()


def _address(path: Path) -> str:
    """The file as a read-only address; one in WAL mode without a log is opened so that no log appears beside it."""
    try:
        with path.open("rb") as file:
            is_wal = file.read(20)[18:] == _WAL_VERSION
    except OSError as error:
        raise PlaceError(f"{path}: not readable ({error.strerror})") from error
    log = path.with_name(path.name + "-wal")
    is_quiet = is_wal and not (log.is_file() and log.stat().st_size)
    return path.as_uri() + ("?mode=ro&immutable=1" if is_quiet else "?mode=ro")


def _error_class(message: str, guard: _Guard) -> str:
    text = message.lower()
    if guard.timed_out or text == "interrupted":
        return "timeout"
    if guard.denied or "not authorized" in text or "prohibited" in text or "readonly" in text:
        return "forbidden"
    return next((error_class for part, error_class in _CLASSES if part in text), "other")
