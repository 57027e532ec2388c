"""Rows that have no database: the schema stands in the prompt, as CREATE TABLE statements."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.data.files import rows_of_file
from posttrain.data.text2sql.benchmarks.schema import Column, Schema, TableSchema
from posttrain.data.text2sql.benchmarks.sources import Asked, Held, text_of
from posttrain.data.text2sql.parsing import parsed
from posttrain.errors import UserError

_STATEMENT = re.compile(r"CREATE\s+TABLE.*?\)\s*(?:;|$)", re.DOTALL | re.IGNORECASE)
_NO_ROWS = ("dataset_info.json", "manifest.json")


class Prompted:
    """A folder with .json and .jsonl files of rows with ``instruction`` (and ``input``) and ``output``."""

    def __init__(self, folder: Path) -> None:
        """Look around.

        Raises:
            UserError: there are no such files.
        """
        found = sorted(path for kind in ("*.json", "*.jsonl") for path in folder.glob(kind))
        self._files = [path for path in found if path.name not in _NO_ROWS]
        if not self._files:
            raise UserError(f"{folder}: no .json or .jsonl files; name the folder with the rows")
        self._schemas: dict[str, Schema] = {}

    def questions(self) -> Iterator[Asked]:
        """All rows, file by file; equal schemas are one database."""
        for path in self._files:
            for where, row in rows_of_file(path):
                asked = text_of(row, ("instruction", "prompt", "question"), where)
                more = row.get("input")
                prompt = f"{asked}\n{more}" if isinstance(more, str) and more.strip() else asked
                statements = _STATEMENT.findall(prompt)
                if not statements:
                    raise UserError(f"{where}: no CREATE TABLE in the prompt, from which a database could be made")
                db_id = "schema_" + hashlib.sha256("".join(sorted(statements)).encode()).hexdigest()[:10]
                if db_id not in self._schemas:
                    self._schemas[db_id] = tuple(_table(statement, where) for statement in statements)
                sql = text_of(row, ("output", "gold", "answer"), where)
                yield Asked(split=path.stem, where=where, db_id=db_id, text=asked, sql=sql, prompt=prompt)

    def database(self, db_id: str) -> Held | None:
        """The tables of a schema, without rows."""
        return Held(schema=self._schemas[db_id]) if db_id in self._schemas else None


def _table(statement: str, where: str) -> TableSchema:
    from sqlglot import exp

    tree: Any = parsed(statement, "mysql") or parsed(statement, "oracle")
    body = tree.this if isinstance(tree, exp.Create) else None
    columns = [part for part in body.expressions if isinstance(part, exp.ColumnDef)] if body is not None else []
    if not isinstance(body, exp.Schema) or not columns:
        raise UserError(f"{where}: CREATE TABLE cannot be read: {statement[:80]!r}")
    return TableSchema(body.this.name, tuple(Column(column.name, _type(column.args.get("kind"))) for column in columns))


def _type(kind: Any) -> str:
    from sqlglot import exp

    if kind is None or kind.this in exp.DataType.TEXT_TYPES:
        return "TEXT"
    if kind.this in exp.DataType.NUMERIC_TYPES:
        return "NUMERIC"
    return "DATE" if kind.this in exp.DataType.TEMPORAL_TYPES else "TEXT"
