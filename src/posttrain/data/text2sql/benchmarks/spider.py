"""Spider and what is laid out like it: CSpider, BIRD, DuSQL. Questions, schemas, databases or their content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.data.text2sql.benchmarks.schema import Schema, schema_of
from posttrain.data.text2sql.benchmarks.sources import Asked, Held, Rows, entries_of, text_of
from posttrain.errors import UserError

_SCHEMAS = re.compile(r"(.*_)?tables\.json|db_schema\.json")
_CONTENT = "db_content.json"
_QUESTIONS = re.compile(r"(train|dev|test|val)[^/]*\.json")
_NO_QUESTIONS = re.compile(r".*(tables|schema|content|gold|predict|split).*\.json")
_DATABASES = re.compile(r"(.*_)?databases?")
_SUFFIXES = (".sqlite", ".sqlite3", ".db")
_SQL = ("query", "SQL", "sql_query", "sql")


class SpiderLike:
    """A folder with question files (train*.json, dev*.json, test*.json), schemas and databases, each also one below."""

    def __init__(self, folder: Path) -> None:
        """Look around.

        Raises:
            UserError: there are no questions.
        """
        self._folder = folder
        self._files = [path for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern))]
        self._questions = [
            path
            for path in self._files
            if path.is_file() and _QUESTIONS.fullmatch(path.name) and not _NO_QUESTIONS.fullmatch(path.name)
        ]
        if not self._questions:
            raise UserError(
                f"{folder}: no question files (looked for train*.json, dev*.json and test*.json there and one folder "
                "below); name the folder that holds them"
            )

    def questions(self) -> Iterator[Asked]:
        """All questions, file by file."""
        seen: set[str] = set()
        for path in self._questions:
            # Spider's test set is called dev.json, too, in a folder of its own
            split = f"{path.parent.name}_{path.stem}" if path.stem in seen else path.stem
            seen.add(path.stem)
            for where, entry in entries_of(path):
                yield Asked(
                    split=split,
                    where=where,
                    db_id=text_of(entry, ("db_id",), where),
                    text=text_of(entry, ("question",), where),
                    sql=text_of(entry, _SQL, where),
                    level=str(entry["difficulty"]) if isinstance(entry.get("difficulty"), str) else None,
                    hint=str(entry.get("evidence") or "").strip(),
                )

    def database(self, db_id: str) -> Held | None:
        """A database: its file, else its schema with the rows of db_content.json."""
        file, schema = self._database_files.get(db_id), self._schemas.get(db_id)
        if file is None and schema is None:
            return None
        return Held(schema=schema, file=file, rows=self._content.get(db_id, {}) if file is None else {})

    @cached_property
    def _schemas(self) -> dict[str, Schema]:
        found = {}
        for path in self._files:
            if path.is_file() and _SCHEMAS.fullmatch(path.name):
                for where, entry in entries_of(path):
                    name = text_of(entry, ("db_id",), where)
                    found[name] = schema_of(entry, f"{where} (db_id {name})")
        return found

    @cached_property
    def _database_files(self) -> dict[str, Path]:
        """db_id -> database/db_id/db_id.sqlite."""
        found: dict[str, Path] = {}
        for folder in self._files:
            if not (folder.is_dir() and _DATABASES.fullmatch(folder.name)):
                continue
            for path in sorted(folder.glob("*/*")) + sorted(folder.glob("*")):
                if path.suffix in _SUFFIXES and path.is_file():
                    own = path.parent.name if path.parent != folder else path.stem
                    if path.stem == own or own not in found:
                        found[own] = path
        return found

    @cached_property
    def _content(self) -> dict[str, Rows]:
        """DuSQL's db_content.json: the rows of each table."""
        found: dict[str, Rows] = {}
        for path in self._files:
            if path.name != _CONTENT:
                continue
            for where, entry in entries_of(path):
                name = text_of(entry, ("db_id",), where)
                found[name] = _rows_of(entry, f"{where} (db_id {name})")
        return found


def _rows_of(entry: dict[str, Any], where: str) -> Rows:
    tables = entry.get("tables")
    if not isinstance(tables, dict):
        raise UserError(
            f"{where}: no object `tables` with the rows of each table (found: {', '.join(map(str, entry))})"
        )
    found = {}
    for name, table in tables.items():
        rows = table.get("cell", table.get("rows")) if isinstance(table, dict) else table
        if not (isinstance(rows, list) and all(isinstance(row, list) for row in rows)):
            raise UserError(f"{where}: table {name} must have its rows as lists in `cell`")
        found[str(name)] = rows
    return found
