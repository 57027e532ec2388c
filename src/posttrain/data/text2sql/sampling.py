"""Draws queries of every kind over a database, with values that exist in its rows."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from posttrain.data.text2sql.queries import Condition, Join, Query, Term
from posttrain.data.text2sql.tables import NUMERIC, Column, Database, Table

# Kinds and how often each is drawn. A kind that a table cannot serve gives way to another, so those that need a
# special column (a date, one with gaps) weigh more than their final share.
WEIGHTS = {
    "projection": 9,
    "filter": 16,
    "compare": 14,
    "between": 6,
    "null": 12,
    "like": 5,
    "count": 10,
    "aggregate": 12,
    "distinct": 6,
    "order": 11,
    "group": 9,
    "having": 4,
    "date": 22,
}
_JOIN_SHARE = 0.7


def draw_query(database: Database, rng: Random) -> Query | None:
    """A query over ``database``, or None when the kind drawn does not fit its columns.

    Args:
        database: joined databases get join queries most of the time.
        rng: source of every choice.
    """
    if database.parent is not None and rng.random() < _JOIN_SHARE:
        return _join(database, database.parent, rng)
    kind = rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))[0]
    return _DRAWERS[kind](database.table, rng)


def _of_kind(table: Table, *kinds: str, nullable: bool = True) -> list[Column]:
    return [c for c in table.columns if c.kind in kinds and (nullable or not c.nullable)]


def _number(cell: object) -> float | int:
    """A stored number, also one stored as text."""
    value = float(str(cell))
    return int(value) if value.is_integer() else value


def _threshold(table: Table, column: Column, rng: Random, low: float = 0.2, high: float = 0.8) -> float | int:
    ordered = sorted(_number(cell) for cell in table.values(column))
    value = ordered[int(len(ordered) * rng.uniform(low, high))]
    return value if column.kind != "real" or rng.random() < 0.3 else round(value)


def _selected(table: Table, rng: Random, *, avoid: tuple[Column, ...] = ()) -> tuple[Term, ...]:
    if rng.random() < 0.1:
        return (Term(None),)
    others = [c for c in table.columns[1:] if c not in avoid and c.kind != "key"]
    if others and rng.random() < 0.35:
        other = rng.choice(others)
        return (Term(table.columns[0]), Term(other)) if rng.random() < 0.6 else (Term(other),)
    return (Term(table.columns[0]),)


def _equality(table: Table, rng: Random) -> Condition | None:
    columns = _of_kind(table, "pick")
    if not columns:
        return None
    column = rng.choice(columns)
    return Condition(column, "=", (rng.choice(table.values(column)),))


def _comparison(table: Table, rng: Random) -> Condition | None:
    columns = _of_kind(table, *NUMERIC)
    if not columns:
        return None
    # Numbers stored as text are rare and the hardest to learn: prefer them where there is one.
    column = rng.choice([c for c in columns if c.needs_cast] or columns)
    return Condition(column, rng.choice((">", ">", "<", "<", ">=", "<=")), (_threshold(table, column, rng),))


def _projection(table: Table, rng: Random) -> Query:
    plain = [c for c in table.columns if c.kind != "key"]
    if rng.random() < 0.15:
        return Query("projection", table.name, (Term(None),))
    chosen = rng.sample(plain, rng.choice((1, 1, 2, 2, min(3, len(plain)))))
    return Query("projection", table.name, tuple(Term(c) for c in sorted(chosen, key=table.columns.index)))


def _filter(table: Table, rng: Random) -> Query | None:
    condition = _equality(table, rng)
    if condition is None:
        return None
    where: tuple[Condition, ...] = (condition,)
    second = _comparison(table, rng) if rng.random() < 0.25 else None
    if second:
        where += (second,)
    avoid = tuple(c.column for c in where)
    return Query("filter", table.name, _selected(table, rng, avoid=avoid), where)


def _compare(table: Table, rng: Random) -> Query | None:
    condition = _comparison(table, rng)
    if condition is None:
        return None
    return Query("compare", table.name, _selected(table, rng), (condition,))


def _between(table: Table, rng: Random) -> Query | None:
    columns = _of_kind(table, *NUMERIC)
    if not columns:
        return None
    column = rng.choice(columns)
    low, high = _threshold(table, column, rng, 0.1, 0.45), _threshold(table, column, rng, 0.55, 0.9)
    return Query("between", table.name, _selected(table, rng), (Condition(column, "between", (low, high)),))


def _null(table: Table, rng: Random) -> Query | None:
    columns = [c for c in table.columns if c.nullable]
    if not columns:
        return None
    condition = Condition(columns[0], rng.choice(("null", "null", "not null")))
    return Query("null", table.name, _selected(table, rng, avoid=(columns[0],)), (condition,))


def _like(table: Table, rng: Random) -> Query | None:
    column = table.columns[0]
    value = str(rng.choice(table.values(column)))
    if rng.random() < 0.5:
        pattern = value[0] + "%"
    else:
        pattern = "%" + (value.split(" ")[-1] if " " in value else value[-1]) + "%"
    return Query("like", table.name, _selected(table, rng), (Condition(column, "like", (pattern,)),))


def _some_where(table: Table, rng: Random, share: float) -> tuple[Condition, ...]:
    if rng.random() >= share:
        return ()
    condition = _equality(table, rng) if rng.random() < 0.6 else _comparison(table, rng)
    return (condition,) if condition else ()


def _count(table: Table, rng: Random) -> Query:
    return Query("count", table.name, (Term(None, "COUNT"),), _some_where(table, rng, 0.65))


def _aggregate(table: Table, rng: Random) -> Query | None:
    columns = _of_kind(table, "int", "real")
    if not columns:
        return None
    term = Term(rng.choice(columns), rng.choice(("AVG", "SUM", "MAX", "MIN")))
    condition = _equality(table, rng) if rng.random() < 0.4 else None
    return Query("aggregate", table.name, (term,), (condition,) if condition else ())


def _distinct(table: Table, rng: Random) -> Query | None:
    columns = _of_kind(table, "pick", nullable=False)
    if not columns:
        return None
    condition = _comparison(table, rng) if rng.random() < 0.25 else None
    where = (condition,) if condition else ()
    return Query("distinct", table.name, (Term(rng.choice(columns)),), where, distinct=True)


def _order(table: Table, rng: Random) -> Query | None:
    columns = [
        c
        for c in _of_kind(table, *NUMERIC, "date", nullable=False)
        if len({str(cell)[:10] for cell in table.values(c)}) == len(table.rows)
    ]
    if not columns:
        return None
    column = rng.choice(columns)
    limit = rng.choice((1, 2, 3, 4, 5)) if rng.random() < 0.75 else None
    select = (Term(table.columns[0]),) if rng.random() < 0.7 else (Term(table.columns[0]), Term(column))
    return Query("order", table.name, select, order=column, descending=rng.random() < 0.6, limit=limit)


def _group(table: Table, rng: Random) -> Query | None:
    picks = _of_kind(table, "pick", nullable=False)
    if not picks:
        return None
    group = rng.choice(picks)
    columns = _of_kind(table, "int", "real")
    if columns and rng.random() < 0.5:
        term = Term(rng.choice(columns), rng.choice(("AVG", "SUM", "MAX", "MIN")))
    else:
        term = Term(None, "COUNT")
    return Query("group", table.name, (Term(group), term), group=group)


def _having(table: Table, rng: Random) -> Query | None:
    picks = _of_kind(table, "pick", nullable=False)
    if not picks:
        return None
    group = rng.choice(picks)
    cells = table.values(group)
    sizes = sorted(cells.count(value) for value in set(cells))
    return Query("having", table.name, (Term(group),), group=group, having=sizes[rng.randrange(len(sizes) - 1)])


def _date(table: Table, rng: Random) -> Query | None:
    columns = _of_kind(table, "date")
    if not columns:
        return None
    column = rng.choice([c for c in columns if c.needs_cast] or columns)
    days = sorted(str(cell)[:10] for cell in table.values(column))
    day = days[int(len(days) * rng.uniform(0.2, 0.8))]
    op = rng.choice((">", ">", "<", "<", "=", "year"))
    condition = Condition(column, op, (day[:4] if op == "year" else day,))
    if rng.random() < 0.3:
        return Query("date", table.name, (Term(None, "COUNT"),), (condition,))
    return Query("date", table.name, _selected(table, rng), (condition,))


def _join(database: Database, parent: Table, rng: Random) -> Query | None:
    table = database.table
    join = Join(parent.name, database.link, database.parent_key)
    parent_columns = parent.columns[1:]
    column = rng.choice(parent_columns)
    if column.kind in NUMERIC:
        condition = Condition(column, rng.choice((">", "<")), (_threshold(parent, column, rng),), parent.name)
    else:
        condition = Condition(column, "=", (rng.choice(parent.values(column)),), parent.name)
    label = Term(table.columns[0], table=table.name)
    numbers = _of_kind(table, "int", "real")
    shape = rng.choice(("label", "label", "both", "count", "aggregate"))
    if shape == "both":
        own = _equality(table, rng)
        where = (Condition(own.column, own.op, own.values, table.name),) if own else ()
        return Query("join", table.name, (label, Term(parent_columns[0], table=parent.name)), where, join)
    if shape == "count":
        return Query("join", table.name, (Term(None, "COUNT"),), (condition,), join)
    if shape == "aggregate" and numbers:
        term = Term(rng.choice(numbers), rng.choice(("AVG", "SUM", "MAX", "MIN")), table.name)
        return Query("join", table.name, (term,), (condition,), join)
    return Query("join", table.name, (label,), (condition,), join)


_DRAWERS: dict[str, Callable[[Table, Random], Query | None]] = {
    "projection": _projection,
    "filter": _filter,
    "compare": _compare,
    "between": _between,
    "null": _null,
    "like": _like,
    "count": _count,
    "aggregate": _aggregate,
    "distinct": _distinct,
    "order": _order,
    "group": _group,
    "having": _having,
    "date": _date,
}
