"""WikiSQL: questions over single tables, whose SQL is written as numbers of columns, aggregates and operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain.data.files import rows_of_file
from posttrain.data.text2sql.benchmarks.schema import Column, TableSchema, quoted, sqlite_type
from posttrain.data.text2sql.benchmarks.sources import Asked, Held, text_of
from posttrain.errors import UserError

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")
_TABLES = ".tables.jsonl"
_TABLES_PER_DATABASE = 100


class WikiSQL:
    """A folder with train.jsonl and train.tables.jsonl, and so on; a hundred tables go into one database."""

    def __init__(self, folder: Path) -> None:
        """Look around.

        Raises:
            UserError: there are no tables, or no questions about them.
        """
        places = (folder, folder / "data")
        self._tables = [path for place in places for path in sorted(place.glob(f"*{_TABLES}"))]
        if not self._tables:
            raise UserError(f"{folder}: no files *{_TABLES}; name the folder with WikiSQL's train{_TABLES}")
        self._splits: dict[str, Path] = {}
        for path in self._tables:
            questions = path.with_name(path.name.removesuffix(_TABLES) + ".jsonl")
            if not questions.is_file():
                raise UserError(f"{path} is there, but not the questions about it, {questions}")
            self._splits[questions.stem] = questions
        self._databases: dict[str, dict[str, tuple[TableSchema, list[list[Any]]]]] = {}
        self._place: dict[tuple[str, str], str] = {}
        for split, path in zip(self._splits, self._tables, strict=True):
            self._read_tables(split, path)

    def questions(self) -> Iterator[Asked]:
        """All questions, file by file, with their SQL written out."""
        for split, path in self._splits.items():
            for where, entry in rows_of_file(path):
                key = (split, text_of(entry, ("table_id",), where))
                if key not in self._place:
                    raise UserError(f"{where}: table {key[1]} is not in {split}{_TABLES}")
                db_id = self._place[key]
                table = self._databases[db_id][key[1]][0]
                yield Asked(
                    split=split,
                    where=where,
                    db_id=db_id,
                    text=text_of(entry, ("question",), where),
                    sql=_statement(entry.get("sql"), table, where),
                    tables=(table.name,),
                )

    def database(self, db_id: str) -> Held | None:
        """A hundred tables of one split."""
        tables = self._databases.get(db_id)
        if tables is None:
            return None
        rows = {schema.name: content for schema, content in tables.values()}
        return Held(schema=tuple(schema for schema, _ in tables.values()), rows=rows, ignores_case=True)

    def _read_tables(self, split: str, path: Path) -> None:
        for number, (where, entry) in enumerate(rows_of_file(path)):
            name = text_of(entry, ("id",), where)
            header, types, rows = (entry.get(key) for key in ("header", "types", "rows"))
            if not (isinstance(header, list) and isinstance(types, list) and isinstance(rows, list)):
                raise UserError(f"{where}: a table needs the lists `header`, `types` and `rows`")
            if len(header) != len(types) or any(len(row) != len(header) for row in rows):
                raise UserError(
                    f"{where}: `header`, `types` and every row must be of one length ({len(header)} columns)"
                )
            columns = tuple(
                Column(column, sqlite_type(kind)) for column, kind in zip(_distinct(header), types, strict=True)
            )
            db_id = f"wikisql_{split}_{number // _TABLES_PER_DATABASE:03d}"
            schema = TableSchema("table_" + name.replace("-", "_"), columns)
            content = [[_number(cell, kind) for cell, kind in zip(row, types, strict=True)] for row in rows]
            self._databases.setdefault(db_id, {})[name] = (schema, content)
            self._place[split, name] = db_id


def _distinct(header: list[Any]) -> list[str]:
    """Column names, in SQL the same in capitals: repeated ones get a number, empty ones a name."""
    found: list[str] = []
    for number, name in enumerate(header, start=1):
        wanted = str(name).strip() or f"column {number}"
        while wanted.lower() in (other.lower() for other in found):
            wanted = f"{wanted} {number}"
        found.append(wanted)
    return found


def _number(cell: Any, kind: Any) -> Any:
    """1,234 of a column of numbers is one."""
    if str(kind).lower() != "real" or not isinstance(cell, str):
        return cell
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return cell


def _statement(sql: Any, table: TableSchema, where: str) -> str:
    """SELECT aggregate(column) FROM table WHERE ...

    Raises:
        UserError: a number names no column, aggregate or operator.
    """
    if not isinstance(sql, Mapping) or not {"sel", "agg", "conds"} <= set(sql):
        raise UserError(f"{where}: `sql` must be an object with `sel`, `agg` and `conds`")
    try:
        column, aggregate = quoted(table.columns[sql["sel"]].name), AGGREGATES[sql["agg"]]
        conditions = [
            f"{quoted(table.columns[number].name)} {OPERATORS[operator]} {_literal(value)}"
            for number, operator, value in sql["conds"]
        ]
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: `sql` names a column, an aggregate or an operator that there is not ({error}); the table has "
            f"{len(table.columns)} columns"
        ) from error
    selected = f"{aggregate}({column})" if aggregate else column
    return f"SELECT {selected} FROM {quoted(table.name)}" + (f" WHERE {' AND '.join(conditions)}" if conditions else "")


def _literal(value: Any) -> str:
    return str(value) if isinstance(value, int | float) else "'" + str(value).replace("'", "''") + "'"
