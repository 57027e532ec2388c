"""A small SQL query as data, so that it can be written as SQL, said in words, and broken in realistic ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.data.text2sql.tables import NUMERIC, Column


@dataclass(frozen=True)
class Term:
    """A selected expression: a column (None for ``*``), possibly under an aggregate, of ``table`` when joined."""

    column: Column | None
    function: str | None = None
    table: str | None = None


@dataclass(frozen=True)
class Condition:
    """``column op values``; op is a comparison, "between", "null", "not null", "like" or "year"."""

    column: Column
    op: str
    values: tuple[Any, ...] = ()
    table: str | None = None


@dataclass(frozen=True)
class Join:
    """``JOIN parent ON table.link = parent.key``."""

    parent: str
    link: str
    key: str


@dataclass(frozen=True)
class Query:
    """One SELECT statement.

    Attributes:
        having: keep groups with more rows than this.
        descending: direction of ``order``; limit: rows kept.
        casts: False leaves out every cast, a mistake on text columns.
    """

    kind: str
    table: str
    select: tuple[Term, ...]
    where: tuple[Condition, ...] = ()
    join: Join | None = None
    distinct: bool = False
    group: Column | None = None
    having: int | None = None
    order: Column | None = None
    descending: bool = False
    limit: int | None = None
    casts: bool = True

    @property
    def uses_cast(self) -> bool:
        """True when the statement casts a column that is stored as text."""
        compared = [c.column for c in self.where if c.op not in ("null", "not null", "like", "year")]
        computed = [t.column for t in self.select if t.function and t.column]
        ordered = [self.order] if self.order else []
        return self.casts and any(column.needs_cast for column in (*compared, *computed, *ordered))

    @property
    def hardness(self) -> str:
        """ "easy", "medium" or "hard", by the number of clauses."""
        if self.join or self.group or self.uses_cast or len(self.where) > 1:
            return "hard"
        return "medium" if self.where or self.order else "easy"

    def sql(self) -> str:
        """The statement in SQLite's dialect, on one line, ending in a semicolon."""
        columns = ", ".join(self._term(term) for term in self.select)
        parts = [f"SELECT {'DISTINCT ' if self.distinct else ''}{columns} FROM {self.table}"]
        if self.join:
            join = self.join
            parts.append(f"JOIN {join.parent} ON {self.table}.{join.link} = {join.parent}.{join.key}")
        if self.where:
            parts.append("WHERE " + " AND ".join(self._condition(condition) for condition in self.where))
        if self.group:
            parts.append(f"GROUP BY {self.group.name}")
        if self.having is not None:
            parts.append(f"HAVING COUNT(*) > {self.having}")
        if self.order:
            parts.append(f"ORDER BY {self._typed(self.order, None)} {'DESC' if self.descending else 'ASC'}")
        if self.limit is not None:
            parts.append(f"LIMIT {self.limit}")
        return " ".join(parts) + ";"

    def _typed(self, column: Column, table: str | None) -> str:
        name = f"{table}.{column.name}" if table else column.name
        if not (self.casts and column.needs_cast):
            return name
        return f"CAST({name} AS REAL)" if column.kind in NUMERIC else f"date({name})"

    def _term(self, term: Term) -> str:
        if term.column is None:
            return f"{term.function}(*)" if term.function else "*"
        if term.function:
            return f"{term.function}({self._typed(term.column, term.table)})"
        return f"{term.table}.{term.column.name}" if term.table else term.column.name

    def _condition(self, condition: Condition) -> str:
        column, table, op = condition.column, condition.table, condition.op
        plain = f"{table}.{column.name}" if table else column.name
        literals = [literal(value) for value in condition.values]
        if op in ("null", "not null"):
            return f"{plain} IS {op.upper()}"
        if op == "like":
            return f"{plain} LIKE {literals[0]}"
        if op == "year":
            return f"strftime('%Y', {plain}) = {literals[0]}"
        if op == "between":
            return f"{self._typed(column, table)} BETWEEN {literals[0]} AND {literals[1]}"
        return f"{self._typed(column, table)} {op} {literals[0]}"


def literal(value: Any) -> str:
    """A Python value as an SQL literal."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)
