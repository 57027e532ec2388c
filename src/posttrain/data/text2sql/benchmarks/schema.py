"""Schemas as benchmarks describe them: Spider's tables.json and its kin, and as CREATE TABLE statements."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import UserError

# Numeric affinity where a benchmark says number, time or boolean: 2010 and '2010' are then the same in a comparison.
_TYPES = {"number": "NUMERIC", "real": "NUMERIC", "time": "DATE", "boolean": "BOOLEAN", "bool": "BOOLEAN"}
_PLAIN = re.compile(r"[^\W\d]\w*")
_RESERVED = frozenset(
    (
        *("add", "all", "alter", "and", "as", "asc", "between", "by", "case", "check", "collate", "column", "commit"),
        *("constraint", "create", "cross", "default", "delete", "desc", "distinct", "drop", "else", "end", "escape"),
        *("except", "exists", "for", "foreign", "from", "full", "group", "having", "if", "in", "index", "inner"),
        *("insert", "intersect", "into", "is", "join", "key", "left", "like", "limit", "natural", "not", "null", "of"),
        *("on", "or", "order", "outer", "primary", "references", "right", "select", "set", "table", "then", "to"),
        *("transaction", "union", "unique", "update", "using", "values", "view", "when", "where", "with"),
    )
)


@dataclass(frozen=True)
class Column:
    """A column and its type in SQLite."""

    name: str
    type: str


@dataclass(frozen=True)
class TableSchema:
    """A table.

    Attributes:
        primary: names of its key. foreign: (column, table referred to, its column).
    """

    name: str
    columns: tuple[Column, ...]
    primary: tuple[str, ...] = ()
    foreign: tuple[tuple[str, str, str], ...] = ()

    @property
    def statement(self) -> str:
        """CREATE TABLE with keys, one column on each line."""
        parts = [f"{quoted(column.name)} {column.type}" for column in self.columns]
        if self.primary:
            parts.append(f"PRIMARY KEY ({', '.join(map(quoted, self.primary))})")
        for column, table, other in self.foreign:
            parts.append(f"FOREIGN KEY ({quoted(column)}) REFERENCES {quoted(table)} ({quoted(other)})")
        return f"CREATE TABLE {quoted(self.name)} (" + ",\n".join(parts) + ");"

    @property
    def bare_statement(self) -> str:
        """CREATE TABLE without keys: rows of benchmarks do not always keep them."""
        return TableSchema(self.name, self.columns).statement


Schema = tuple[TableSchema, ...]


def quoted(name: str) -> str:
    """A name as SQL needs it: in quotes where it is no plain word."""
    plain = _PLAIN.fullmatch(name) and name.lower() not in _RESERVED
    return name if plain else '"' + name.replace('"', '""') + '"'


def schema_of(entry: Mapping[str, Any], where: str) -> Schema:
    """One database of a tables.json.

    Args:
        entry: with ``table_names_original`` (or ``table_names``), ``column_names_original`` (or ``column_names``) as
            [table, name] pairs, ``column_types``, ``primary_keys`` and ``foreign_keys`` as numbers of columns.
        where: it stands, for messages.

    Raises:
        UserError: a key is missing, or lengths and numbers do not fit.
    """
    tables = _list(entry, ("table_names_original", "table_names"), where)
    columns = _list(entry, ("column_names_original", "column_names"), where)
    types = _list(entry, ("column_types",), where)
    if len(types) != len(columns):
        raise UserError(
            f"{where}: `column_types` has {len(types)} entries, but there are {len(columns)} columns; the file is "
            "damaged or mixed from two versions"
        )
    owners: list[int] = []
    for number, column in enumerate(columns):
        if not (isinstance(column, list) and len(column) == 2 and isinstance(column[0], int)):
            raise UserError(f"{where}: column {number} must be [number of its table, name], found {column!r}")
        if column[0] >= len(tables):
            raise UserError(
                f"{where}: column {number} belongs to table {column[0]}, but there are {len(tables)} tables"
            )
        owners.append(column[0])
    primary = [key for keys in entry.get("primary_keys") or () for key in (keys if isinstance(keys, list) else [keys])]
    foreign = entry.get("foreign_keys") or ()
    for key in (*primary, *(key for pair in foreign for key in pair)):
        if not (isinstance(key, int) and 0 <= key < len(columns)):
            raise UserError(f"{where}: a key names column {key!r}, but there are {len(columns)} columns")
    return tuple(
        TableSchema(
            str(name),
            tuple(Column(str(columns[i][1]), sqlite_type(types[i])) for i in range(len(columns)) if owners[i] == table),
            tuple(str(columns[key][1]) for key in primary if owners[key] == table),
            tuple(
                (str(columns[a][1]), str(tables[owners[b]]), str(columns[b][1]))
                for a, b in foreign
                if owners[a] == table
            ),
        )
        for table, name in enumerate(tables)
        if not str(name).lower().startswith("sqlite_")  # SQLite's own, which Spider lists
    )


def sqlite_type(name: Any) -> str:
    """The type of a column in SQLite, of a benchmark's word for it."""
    return _TYPES.get(str(name).lower(), "TEXT")


def _list(entry: Mapping[str, Any], names: Sequence[str], where: str) -> list[Any]:
    for name in names:
        if isinstance(entry.get(name), list):
            return list(entry[name])
    raise UserError(
        f"{where}: no list `{names[0]}` (found: {', '.join(map(str, entry)) or 'nothing'}); is it a file of schemas as "
        "Spider's tables.json?"
    )
