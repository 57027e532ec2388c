"""Domains, and the concrete tables drawn from them: a choice of columns, names, storage types and rows."""

from __future__ import annotations

import datetime
import functools
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any

import yaml

from posttrain.data.text2sql.values import LABEL_KINDS, choices, names

NUM_ROWS = 40
NUM_PARENT_ROWS = 8
NUMERIC = ("int", "real", "year")

_STORED = {"label": "TEXT", "pick": "TEXT", "int": "INT", "year": "INT", "real": "REAL", "date": "DATE"}
# How often a number or a date is stored as text, so that a comparison needs a cast.
_TEXT_SHARE = {"int": 0.12, "real": 0.12, "date": 0.45}
_NULL_SHARE = 0.15


@dataclass(frozen=True)
class ColumnSpec:
    """A column as a domain describes it; ``kind`` is a name pool, "pick", "int", "real", "year" or "date"."""

    names: dict[str, tuple[str, ...]]
    kind: str
    low: int = 0
    high: int = 0
    values: dict[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Domain:
    """A subject (books, loans, pets) with its table names, columns and the table it refers to.

    Attributes:
        tables: language -> (table name, plural used in questions) alternatives.
        columns: the first one names a row. parent: language -> table name. parent_columns: besides the key.
    """

    name: str
    tables: dict[str, tuple[tuple[str, str], ...]]
    columns: tuple[ColumnSpec, ...]
    parent: dict[str, str]
    parent_columns: tuple[ColumnSpec, ...]

    def table_names(self) -> set[str]:
        """Every table name that a database of this domain may contain, in either language."""
        own = {name for pairs in self.tables.values() for pair in pairs for name in pair}
        return own | set(self.parent.values())


@dataclass(frozen=True)
class Column:
    """A concrete column: ``kind`` is "label", "pick", "int", "real", "year", "date" or "key"; ``type`` as declared."""

    name: str
    kind: str
    type: str
    nullable: bool = False

    @property
    def phrase(self) -> str:
        """The column as a question names it."""
        return self.name.replace("_", " ")

    @property
    def needs_cast(self) -> bool:
        """True for a number or a date stored as text."""
        return self.type == "VARCHAR" and self.kind in (*NUMERIC, "date")


@dataclass(frozen=True)
class Table:
    """A concrete table with its rows; ``noun`` is what a question calls the rows."""

    name: str
    noun: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def schema(self) -> str:
        """The CREATE TABLE statement, one column per line as in the prompts."""
        columns = ",\n".join(f"{column.name} {column.type}" for column in self.columns)
        return f"CREATE TABLE {self.name} ({columns});"

    def values(self, column: Column) -> list[Any]:
        """The column's values that are not NULL."""
        place = self.columns.index(column)
        return [row[place] for row in self.rows if row[place] is not None]


@dataclass(frozen=True)
class Database:
    """One SQLite database: a table, and for join questions the parent it refers to by ``link`` = ``parent_key``."""

    domain: str
    language: str
    file: str
    table: Table
    parent: Table | None = None
    link: str = ""
    parent_key: str = ""

    @property
    def tables(self) -> tuple[Table, ...]:
        return (self.table,) if self.parent is None else (self.table, self.parent)

    @property
    def schema(self) -> str:
        return "\n".join(table.schema for table in self.tables)

    def write(self, directory: Path) -> None:
        """Write the SQLite file under ``directory``, replacing an older one."""
        path = directory / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        try:
            connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            for table in self.tables:
                connection.execute(table.schema)
                places = ", ".join("?" * len(table.columns))
                connection.executemany(f"INSERT INTO {table.name} VALUES ({places})", table.rows)
            connection.commit()
        finally:
            connection.close()


def _column_spec(key: str, text: str) -> ColumnSpec:
    en, zh = key.split(" ")
    column_names = {"en": tuple(en.split("|")), "zh": tuple(zh.split("|"))}
    words = text.split(" ")
    if text in LABEL_KINDS:
        return ColumnSpec(column_names, text)
    if words[0] in (*NUMERIC, "date"):
        return ColumnSpec(column_names, words[0], int(words[1]), int(words[2]))
    return ColumnSpec(column_names, "pick", values=choices(text))


def _domain(name: str, entry: dict[str, Any]) -> Domain:
    parent = entry["parent"]
    english = []
    for pair in entry["en"]:
        singular, plural = pair.split(" ")
        english += [(singular, plural), (plural, plural)]
    return Domain(
        name=name,
        tables={"en": tuple(english), "zh": tuple((noun, noun) for noun in entry["zh"])},
        columns=tuple(_column_spec(key, text) for key, text in entry["columns"].items()),
        parent={"en": parent["en"], "zh": parent["zh"]},
        parent_columns=tuple(_column_spec(key, text) for key, text in parent["columns"].items()),
    )


@functools.cache
def load_domains() -> tuple[Domain, ...]:
    """All domains of the package, in the order of the files."""
    folder = resources.files(__package__).joinpath("domains")
    domains: list[Domain] = []
    for file in ("business.yaml", "culture.yaml", "life.yaml"):
        entries = yaml.safe_load(folder.joinpath(file).read_text(encoding="utf-8"))
        domains += [_domain(name, entry) for name, entry in entries.items()]
    return tuple(domains)


def _distinct_numbers(spec: ColumnSpec, count: int, rng: Random) -> list[int]:
    span = spec.high - spec.low + 1
    if span >= 3 * count:
        return rng.sample(range(spec.low, spec.high + 1), count)
    return [rng.randint(spec.low, spec.high) for _ in range(count)]


def _cells(spec: ColumnSpec, column: Column, language: str, count: int, rng: Random) -> list[Any]:
    if column.kind == "label":
        cells: list[Any] = list(names(spec.kind, language, count, rng))
    elif spec.values is not None:
        pool = list(spec.values[language])
        rng.shuffle(pool)
        # Uneven weights: groups of different size make HAVING and "most" questions decidable.
        cells = pool[:count] + rng.choices(pool, weights=range(2, 2 + len(pool)), k=max(0, count - len(pool)))
        rng.shuffle(cells)
    elif column.kind == "date":
        start = datetime.date(spec.low, 1, 1).toordinal()
        days = rng.sample(range(start, datetime.date(spec.high, 12, 28).toordinal()), count)
        cells = [datetime.date.fromordinal(day).isoformat() for day in days]
        if column.type == "VARCHAR":
            cells = [f"{day} {rng.randint(8, 18):02}:{rng.choice((0, 15, 30, 45)):02}" for day in cells]
    elif column.kind == "real":
        scaled = ColumnSpec(spec.names, "int", spec.low * 10, spec.high * 10)
        cells = [number / 10 for number in _distinct_numbers(scaled, count, rng)]
    else:
        cells = list(_distinct_numbers(spec, count, rng))
    if column.type == "VARCHAR" and column.kind in NUMERIC:
        cells = [str(cell) for cell in cells]
    if column.nullable:
        cells = [None if rng.random() < _NULL_SHARE else cell for cell in cells]
    return cells


def _concrete(spec: ColumnSpec, language: str, rng: Random, *, nullable: bool, first: bool) -> Column:
    kind = "label" if spec.kind in LABEL_KINDS else spec.kind
    as_text = not first and rng.random() < _TEXT_SHARE.get(kind, 0.0)
    return Column(rng.choice(spec.names[language]), kind, "VARCHAR" if as_text else _STORED[kind], nullable)


def _chosen_specs(domain: Domain, count: int, rng: Random) -> list[ColumnSpec]:
    first, rest = domain.columns[0], list(domain.columns[1:])
    rng.shuffle(rest)
    picks = [spec for spec in rest if spec.kind == "pick"]
    numbers = [spec for spec in rest if spec.kind in NUMERIC]
    wanted = ([picks[0]] if picks else []) + ([numbers[0]] if numbers else [])
    chosen = (wanted + [spec for spec in rest if spec not in wanted])[: count - 1]
    return [first, *sorted(chosen, key=domain.columns.index)]


def draw_database(
    domain: Domain, language: str, number: int, rng: Random, *, max_columns: int, joined: bool
) -> Database:
    """A concrete database of ``domain``: columns chosen, named and typed, rows filled, all from ``rng``.

    Args:
        domain: the subject.
        language: "en" or "zh": of table names, column names and values.
        number: makes the file name unique.
        max_columns: at least 3; the table has 3 to ``max_columns`` columns (the link to a parent included).
        joined: add the parent table.
    """
    count = rng.randint(3, max_columns) if not joined else 3
    specs = _chosen_specs(domain, count, rng)
    holey = rng.randrange(1, len(specs)) if rng.random() < 0.5 else -1
    columns = [_concrete(s, language, rng, nullable=i == holey, first=i == 0) for i, s in enumerate(specs)]
    cells = [_cells(s, c, language, NUM_ROWS, rng) for s, c in zip(specs, columns, strict=True)]
    name, noun = rng.choice(domain.tables[language])
    file = f"databases/{domain.name}_{language}_{number:03}.sqlite"
    if not joined:
        return Database(domain.name, language, file, Table(name, noun, tuple(columns), _rows(cells)))
    key = {"en": "id", "zh": "编号"}[language]
    parent_name = domain.parent[language]
    link = f"{parent_name}_id" if language == "en" else f"{parent_name}编号"
    parent_specs = domain.parent_columns
    parent_columns = [_concrete(s, language, rng, nullable=False, first=True) for s in parent_specs]
    parent_cells = [
        _cells(s, c, language, NUM_PARENT_ROWS, rng) for s, c in zip(parent_specs, parent_columns, strict=True)
    ]
    keys: Sequence[Any] = range(1, NUM_PARENT_ROWS + 1)
    parent = Table(
        parent_name, parent_name, (Column(key, "key", "INT"), *parent_columns), _rows([list(keys), *parent_cells])
    )
    columns.append(Column(link, "key", "INT"))
    cells.append(rng.choices(keys, k=NUM_ROWS))
    return Database(domain.name, language, file, Table(name, noun, tuple(columns), _rows(cells)), parent, link, key)


def _rows(cells: Sequence[Sequence[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(zip(*cells, strict=True))
