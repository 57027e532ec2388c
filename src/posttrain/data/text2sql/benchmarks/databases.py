"""SQLite databases of a benchmark: linked where they are there, built where only their content is."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.text2sql.benchmarks.schema import Column, Schema, TableSchema, quoted
from posttrain.data.text2sql.benchmarks.sources import Held, Rows
from posttrain.errors import UserError


def place_database(held: Held, path: Path, extra: Rows | None = None) -> None:
    """Put a database at ``path``: a link to its file (a copy where links do not work), or a new one with its rows.

    Args:
        held: the database. path: replaced where it is there. extra: rows for tables that have none.

    Raises:
        UserError: it cannot be written, or rows do not fit its tables.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if held.file is not None:
            try:
                os.link(held.file.resolve(), path)
            except OSError:
                shutil.copyfile(held.file, path)
            return
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        _fill(connection, held, extra or {}, path)


def _fill(connection: sqlite3.Connection, held: Held, extra: Rows, path: Path) -> None:
    known = {table.name.lower(): table for table in held.schema or ()}
    for table in known.values():
        try:
            connection.execute((_caseless(table) if held.ignores_case else table).bare_statement)
        except sqlite3.Error as error:
            raise UserError(f"{path}: table {table.name} cannot be made: {error}: {table.statement}") from error
    for name, rows in [*held.rows.items(), *((n, r) for n, r in extra.items() if not held.rows.get(n))]:
        owner = known.get(name.lower())
        if owner is None:
            raise UserError(f"{path}: there are rows for a table {name}, which the schema does not have")
        _insert(connection, owner, rows, path)


def _caseless(table: TableSchema) -> TableSchema:
    columns = (Column(c.name, f"{c.type} COLLATE NOCASE" if c.type == "TEXT" else c.type) for c in table.columns)
    return TableSchema(table.name, tuple(columns))


def _insert(connection: sqlite3.Connection, table: TableSchema, rows: Sequence[Sequence[Any]], path: Path) -> None:
    width = len(table.columns)
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise UserError(
                f"{path}: row {number} of table {table.name} has {len(row)} cells, but the table {width} columns"
            )
    marks = ", ".join("?" * width)
    cells = [[_cell(cell) for cell in row] for row in rows]
    connection.executemany(f"INSERT INTO {quoted(table.name)} VALUES ({marks})", cells)


def _cell(cell: Any) -> Any:
    return cell if cell is None or isinstance(cell, int | float | str) else str(cell)


def complaint(path: Path, sql: str) -> str | None:
    """Why a statement cannot be prepared on a database; None where it can. Nothing is run."""
    with contextlib.closing(_reader(path)) as connection:
        try:
            connection.execute(f"EXPLAIN {sql}").fetchall()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            return str(error)
    return None


def num_rows(path: Path) -> int:
    """Rows of all tables, counted up to the first few."""
    with contextlib.closing(_reader(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counts = [
            connection.execute(f"SELECT COUNT(*) FROM (SELECT 1 FROM {_always_quoted(name)} LIMIT 9)").fetchone()[0]
            for name in names
        ]
    return sum(counts)


def written_schema(path: Path) -> Mapping[str, str]:
    """Table -> its CREATE TABLE statement, as the file has it."""
    with contextlib.closing(_reader(path)) as connection:
        found = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
        )
        return {name: " ".join(sql.split()) + ";" for name, sql in found if sql}


def _reader(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise UserError(f"{path}: not a readable SQLite database ({error}); was it downloaded completely?") from error
    return connection


def _always_quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def shown_schema(schema: Schema, tables: Sequence[str] | None) -> str:
    """The CREATE TABLE statements that a question is shown with."""
    return "\n".join(table.statement for table in schema if tables is None or table.name in tables)
