"""Runs SQL that a model wrote on a real database, SQLite or PostgreSQL, read-only and under tight limits.

Statements are hostile input. Each runs in a process that may be ended at any moment, on a connection that can only
read: ``sqlite`` and ``postgres`` say how, ``limits`` how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import UserError
from posttrain.rewards.sql import workers
from posttrain.rewards.sql.limits import MAX_SQL_LENGTH, LimitError, Row, check_statement
from posttrain.rewards.sql.places import Place, ServerDatabase

__all__ = ["MAX_SQL_LENGTH", "Execution", "Place", "Row", "check_place", "execute", "execute_all", "table_names"]


@dataclass(frozen=True)
class Execution:
    """What running a statement gave.

    Attributes:
        rows: the result; None when it failed. Cells are None, int, float, str or bytes.
        error: the database's message or ours; None when it ran.
        columns: names of the result's columns.
        error_class: None, "empty", "not_a_query", "forbidden", "no_such_table", "no_such_column", "syntax",
            "multiple_statements", "timeout", "too_many_rows", "too_big" or "other".
    """

    rows: tuple[Row, ...] | None
    error: str | None = None
    columns: tuple[str, ...] = ()
    error_class: str | None = None


def execute(db: Place, sql: str, *, time_limit_s: float = 2.0, row_limit: int = 10_000) -> Execution:
    """Run one model-written statement on ``db`` without being able to change anything.

    Args:
        db: an SQLite file, opened with ``mode=ro``, or a database of a server.
        sql: one SELECT, WITH or VALUES statement, at most ``MAX_SQL_LENGTH`` characters; on PostgreSQL also TABLE,
            and brackets around a query.
        time_limit_s: of preparing and running together.
        row_limit: a longer result is an error, not a cut one.

    Returns:
        Rows, or the error and its class. Text that is not UTF-8 is decoded with replacement characters. On
        PostgreSQL a truth value is 1 or 0, numbers are int or float, every other type is the server's text.

    Raises:
        UserError: ``db`` is missing or cannot be used: that is not the model's mistake.
    """
    try:
        _check_statement(db, sql)
    except LimitError as refusal:
        return Execution(None, str(refusal), error_class=refusal.error_class)
    return _executed(db, sql, time_limit_s, row_limit)


def execute_all(
    statements: Sequence[tuple[Place, str]], *, time_limit_s: float = 2.0, row_limit: int = 10_000
) -> list[Execution]:
    """Run many statements, as many at a time as there are workers; see ``execute``.

    Args:
        statements: database and SQL of each. time_limit_s, row_limit: of each.

    Returns:
        One execution for each, in order.

    Raises:
        UserError: as ``execute``, about the first such one.
    """

    def one(statement: tuple[Place, str]) -> Execution:
        return execute(*statement, time_limit_s=time_limit_s, row_limit=row_limit)

    if len(statements) < 2:
        return [one(statement) for statement in statements]
    with ThreadPoolExecutor(min(workers.pool().size, len(statements)), thread_name_prefix="sql") as threads:
        return list(threads.map(one, statements))


def check_place(db: Place) -> None:
    """Make sure that statements can be run on this database: it is there, and on a server its role may only read.

    Raises:
        UserError: says what is wrong.
    """
    if isinstance(db, ServerDatabase):
        _executed(db, "", 1.0, 1)
    elif not Path(db).is_file():
        raise UserError(f"{db}: no such database file. Generate the data again or correct the path")


def table_names(db: Place) -> tuple[str, ...]:
    """Tables and views that a statement could name, for messages; empty where they cannot be read."""
    listed = (
        "SELECT table_name FROM information_schema.tables "
        "WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"
        if isinstance(db, ServerDatabase)
        else "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY 1"
    )
    return tuple(str(row[0]) for row in execute(db, listed).rows or ())


def _check_statement(db: Place, sql: str) -> None:
    if isinstance(db, ServerDatabase):
        check_statement(sql, ("SELECT", "WITH", "VALUES", "TABLE"), may_have_brackets=True)
    else:
        check_statement(sql, ("SELECT", "WITH", "VALUES"))


def _executed(db: Place, sql: str, time_limit_s: float, row_limit: int) -> Execution:
    request: dict[str, Any] = {"sql": sql, "time_limit_s": time_limit_s, "row_limit": row_limit}
    is_server = isinstance(db, ServerDatabase)
    if isinstance(db, ServerDatabase):
        request["server"] = db.request()
    else:
        check_place(db)
        request["path"] = str(Path(db).resolve())
    try:
        answer = workers.pool().answer(request, workers.limit_of(time_limit_s, is_server=is_server))
    except workers.EndedError as ended:
        if ended.seconds >= time_limit_s:
            return Execution(None, "the time limit was reached", error_class="timeout")
        return Execution(None, "the statement ended the process that ran it", error_class="other")
    if "mistake" in answer:
        raise UserError(answer["mistake"])
    if "error" in answer:
        return Execution(None, answer["error"], error_class=answer["error_class"])
    rows = tuple(tuple(_cell(cell) for cell in row) for row in answer.get("rows", ()))
    return Execution(rows, columns=tuple(answer.get("columns", ())))


def _cell(cell: Any) -> Any:
    return bytes.fromhex(cell[0]) if isinstance(cell, list) else cell
