"""Rows for databases whose content is not published: made up around what the questions ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from random import Random
from typing import Any

from posttrain.data.text2sql.benchmarks.schema import Schema, TableSchema

_ASKED_SHARE = 0.5
_NULL_SHARE = 0.05
_DAYS = ("2019-06-15", "2021-03-01", "2023-12-31", "2036-01-01", "2040-07-01")
Asked = dict[str, list[Any]]
"""Column in small letters -> values that statements compare it with."""


def asked_values(statements: Iterable[str], dialect: str = "sqlite") -> Asked:
    """What gold statements compare columns with, so that they find something; dates for what they read as a date.

    Raises:
        UserError: sqlglot is not installed.
    """
    from posttrain.data.text2sql.parsing import parsed

    found: defaultdict[str, dict[Any, None]] = defaultdict(dict)
    for sql in statements:
        tree = parsed(sql, dialect)
        for column, value in _compared(tree) if tree is not None else ():
            found[column.lower()][value] = None
    return {column: list(values) for column, values in found.items()}


def _compared(tree: Any) -> Iterable[tuple[str, Any]]:
    from sqlglot import exp

    for node in tree.find_all(exp.StrToDate, exp.StrToTime, exp.TsOrDsToDate, exp.Extract, exp.Cast, exp.DateDiff):
        if isinstance(node, exp.Cast) and node.to.this not in exp.DataType.TEMPORAL_TYPES:
            continue
        for column in node.find_all(exp.Column):
            yield from ((column.name, day) for day in _DAYS)
    kinds = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.In, exp.Between)
    for node in tree.find_all(*kinds):
        column = node.this
        if not isinstance(column, exp.Column):
            continue
        others = [node.args.get("expression"), node.args.get("low"), node.args.get("high"), *node.expressions]
        for other in others:
            if isinstance(other, exp.Literal):
                yield column.name, _value(other.this if not other.is_string else other.this.strip("%"), other.is_string)
            elif isinstance(other, exp.Column) and other.this.args.get("quoted") and not other.table:
                yield column.name, _value(other.name.strip("%"), True)  # SQLite takes "text" for text


def _value(text: str, is_string: bool) -> Any:
    if is_string:
        return text
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text


def invented_rows(schema: Schema, num_rows: int, asked: Asked, seed: str) -> dict[str, list[list[Any]]]:
    """Rows for every table; keys are distinct, foreign keys refer to rows that are there.

    Args:
        schema: of the database. num_rows: of each table. asked: from ``asked_values``.
        seed: the same one gives the same rows.
    """
    rng = Random(f"invented {seed}")
    rows: dict[str, list[list[Any]]] = {}
    for table in _referred_first(schema):
        known = {other.name: (other, rows[other.name]) for other in schema if other.name in rows}
        columns = [_column(table, i, num_rows, asked, known, rng) for i in range(len(table.columns))]
        rows[table.name] = [list(row) for row in zip(*columns, strict=True)]
    return rows


def _referred_first(schema: Schema) -> list[TableSchema]:
    """Tables behind those that they refer to, as far as that goes."""
    left, ordered = list(schema), []
    while left:
        names = {table.name for table in left}
        ready = [t for t in left if not any(other in names and other != t.name for _, other, _ in t.foreign)]
        ordered += ready or left[:1]
        left = [table for table in left if table not in ordered]
    return ordered


def _column(
    table: TableSchema, place: int, num_rows: int, asked: Asked, known: dict[str, Any], rng: Random
) -> Sequence[Any]:
    column = table.columns[place]
    is_key = table.primary == (column.name,)
    for own, other, theirs in table.foreign:
        if own == column.name and other in known and not is_key:
            referred, rows = known[other]
            at = [c.name for c in referred.columns].index(theirs)
            return [rng.choice(rows)[at] if rows else None for _ in range(num_rows)]
    is_number = column.type in ("NUMERIC", "BOOLEAN")
    if is_key:
        return [i if is_number else f"{column.name} {i}" for i in range(1, num_rows + 1)]
    wanted = [value for value in asked.get(column.name.lower(), ()) if isinstance(value, int | float) or not is_number]
    return [_cell(column.name, column.type, wanted, rng) for _ in range(num_rows)]


def _cell(name: str, kind: str, wanted: Sequence[Any], rng: Random) -> Any:
    if rng.random() < _NULL_SHARE:
        return None
    if wanted and rng.random() < _ASKED_SHARE:
        value = rng.choice(wanted)
        return value + rng.choice((-1, 0, 0, 1)) if isinstance(value, int | float) else value
    if kind == "BOOLEAN":
        return rng.randint(0, 1)
    if kind == "NUMERIC":
        return rng.randint(1, 100)
    if kind == "DATE":
        return (date(2000, 1, 1) + timedelta(days=rng.randrange(9000))).isoformat()
    return f"{name} {rng.randint(1, 20)}"
