"""Turns a correct query into the wrong answers that a model really gives, each under its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from random import Random

from posttrain.data.text2sql.queries import Condition, Query, Term
from posttrain.data.text2sql.tables import Column, Database

Broken = Iterator[str]

_FLIPPED = {">": "<", "<": ">", ">=": "<=", "<=": ">=", "=": "!=", "null": "not null", "not null": "null"}
_NEAR = {">": ">=", "<": "<=", ">=": ">", "<=": "<"}
_STRAY = {
    "en": ("total_count", "full_name", "category_id", "record_date", "item_type", "amount_due"),
    "zh": ("总数", "全名", "类目", "记录日", "备注", "编码值"),
}
_STRAY_TABLES = {"en": ("records", "main_table", "data", "info"), "zh": ("信息表", "数据表", "记录", "PG库")}
# Mistakes that few queries allow come early when they are possible; what is easy to tell from SQL comes late.
_LATENESS = {
    "missing_cast": 0.15,
    "missing_distinct": 0.15,
    "wrong_aggregate": 0.4,
    "wrong_operator": 0.7,
    "extra_filter": 0.9,
    "wrong_value": 0.6,
    "hallucinated_column": 1.6,
    "wrong_table": 1.6,
    "prose": 2.5,
}
_OTHER_FUNCTION = {"AVG": ("SUM", "MAX"), "SUM": ("AVG", "COUNT"), "MAX": ("MIN", "AVG"), "MIN": ("MAX", "AVG")}


def broken_answers(query: Query, database: Database, rng: Random) -> Iterator[tuple[str, str]]:
    """(mistake, wrong answer) candidates in random order; a candidate may still happen to give the right rows.

    Args:
        query: the correct one. database: what it is about. rng: source of every choice.
    """
    for mistake in sorted(MISTAKES, key=lambda name: rng.random() * _LATENESS.get(name, 1.0)):
        for text in MISTAKES[mistake](query, database, rng):
            yield mistake, text


def hasty(query: Query) -> Query:
    """The query as an annotator in a hurry writes it: every column instead of those asked for, DISTINCT forgotten."""
    plain = query.group is None and not any(term.function for term in query.select)
    return dataclasses.replace(query, select=(Term(None),) if plain else query.select, distinct=False)


def _swapped(query: Query, old: Column, new: Column) -> list[Query]:
    """The query with one use of ``old`` replaced by ``new``, for each place where it is used."""
    results = []
    for i, term in enumerate(query.select):
        if term.column == old and query.group != old:
            select = (*query.select[:i], dataclasses.replace(term, column=new), *query.select[i + 1 :])
            results.append(dataclasses.replace(query, select=select))
    for i, condition in enumerate(query.where):
        if condition.column == old:
            where = (*query.where[:i], dataclasses.replace(condition, column=new), *query.where[i + 1 :])
            results.append(dataclasses.replace(query, where=where))
    if query.order == old:
        results.append(dataclasses.replace(query, order=new))
    if query.group == old:
        select = tuple(Term(new) if term.column == old else term for term in query.select)
        results.append(dataclasses.replace(query, select=select, group=new))
    return results


def _used(query: Query) -> list[Column]:
    columns = [t.column for t in query.select] + [c.column for c in query.where] + [query.order, query.group]
    return [column for column in dict.fromkeys(columns) if column is not None]


def _wrong_column(query: Query, database: Database, rng: Random) -> Broken:
    used = _used(query)
    rng.shuffle(used)
    for old in used:
        others = [c for c in database.table.columns if c not in used and c.kind != "key"]
        others.sort(key=lambda c: (c.kind != old.kind, rng.random()))
        for new in others:
            for wrong in _swapped(query, old, new):
                yield wrong.sql()


def _hallucinated_column(query: Query, database: Database, rng: Random) -> Broken:
    known = {column.name for table in database.tables for column in table.columns}
    used = _used(query)
    rng.shuffle(used)
    for old in used:
        near = f"{old.name}_name" if database.language == "en" else f"{old.name}名"
        names = [near, *(name for name in _STRAY[database.language] if name not in known)]
        name = rng.choice(names[:1] * 2 * len(names) + names[1:])
        if name not in known:
            for wrong in _swapped(query, old, dataclasses.replace(old, name=name)):
                yield wrong.sql()


def _wrong_table(query: Query, database: Database, rng: Random) -> Broken:
    if query.join is None and database.parent is not None:
        yield dataclasses.replace(query, table=database.parent.name).sql()
    noun = database.table.noun
    stray = [noun] if noun != query.table else []
    stray += list(_STRAY_TABLES[database.language])
    name = rng.choice(stray[:1] * 3 + stray[1:])
    if query.join is None:
        yield dataclasses.replace(query, table=name).sql()
    else:
        join = dataclasses.replace(query.join, parent=name)
        yield dataclasses.replace(query, join=join).sql()


def _missing_cast(query: Query, database: Database, rng: Random) -> Broken:
    if query.uses_cast:
        yield dataclasses.replace(query, casts=False).sql()


def _missing_filter(query: Query, database: Database, rng: Random) -> Broken:
    if query.where:
        dropped = rng.randrange(len(query.where))
        where = tuple(condition for i, condition in enumerate(query.where) if i != dropped)
        yield dataclasses.replace(query, where=where).sql()
    if query.having is not None:
        yield dataclasses.replace(query, having=None).sql()
    if query.limit is not None:
        yield dataclasses.replace(query, limit=None).sql()


def _wrong_aggregate(query: Query, database: Database, rng: Random) -> Broken:
    for i, term in enumerate(query.select):
        if term.function is None:
            continue
        if term.column is not None:
            terms = [dataclasses.replace(term, function=f) for f in _OTHER_FUNCTION[term.function]]
        else:
            terms = [Term(c, "SUM", term.table) for c in database.table.columns if c.kind in ("int", "real")]
            terms.append(Term(database.table.columns[0], None, query.table if query.join else None))
        rng.shuffle(terms)
        for wrong in terms:
            select = (*query.select[:i], wrong, *query.select[i + 1 :])
            yield dataclasses.replace(query, select=select).sql()


def _with_condition(query: Query, place: int, condition: Condition) -> str:
    where = (*query.where[:place], condition, *query.where[place + 1 :])
    return dataclasses.replace(query, where=where).sql()


def _wrong_operator(query: Query, database: Database, rng: Random) -> Broken:
    for i, condition in enumerate(query.where):
        if condition.op in _FLIPPED:
            yield _with_condition(query, i, dataclasses.replace(condition, op=_FLIPPED[condition.op]))
        if condition.op in _NEAR and rng.random() < 0.5:
            yield _with_condition(query, i, dataclasses.replace(condition, op=_NEAR[condition.op]))
        elif condition.op == "between":
            yield from _broken_between(query, i, condition, rng)
        elif condition.op == "like":
            yield _with_condition(query, i, _broken_pattern(condition, rng))
        elif condition.op == "year":
            yield _with_condition(query, i, dataclasses.replace(condition, op="="))
    if query.order:
        yield dataclasses.replace(query, descending=not query.descending).sql()


def _broken_between(query: Query, place: int, condition: Condition, rng: Random) -> Broken:
    """One bound only, or two comparisons that no number or nearly every number meets."""
    low, high = condition.values
    pairs = [(("<=", low), (">=", high)), (("<=", low), ("<=", high)), ((">", low), None), (("<", high), None)]
    for first, second in rng.sample(pairs, k=len(pairs)):
        bounds = [dataclasses.replace(condition, op=b[0], values=(b[1],)) for b in (first, second) if b is not None]
        where = (*query.where[:place], *bounds, *query.where[place + 1 :])
        yield dataclasses.replace(query, where=where).sql()


def _broken_pattern(condition: Condition, rng: Random) -> Condition:
    """Another place of the wildcards, or none and an equals sign."""
    core = str(condition.values[0]).strip("%")
    others = [pattern for pattern in (f"{core}%", f"%{core}", f"%{core}%") if pattern != condition.values[0]]
    if rng.random() < 0.3:
        return dataclasses.replace(condition, op="=", values=(core,))
    return dataclasses.replace(condition, values=(rng.choice(others),))


def _extra_filter(query: Query, database: Database, rng: Random) -> Broken:
    """A condition that nobody asked for, on a column of the table: what a model adds that has seen mostly filters."""
    if query.join is not None:
        return
    asked = {condition.column for condition in query.where}
    free = [column for column in database.table.columns if column not in asked and column.kind != "key"]
    rng.shuffle(free)
    for column in free:
        cells = [cell for cell in database.table.values(column) if cell is not None]
        if not cells or column.needs_cast:
            continue
        noun = database.table.noun
        value = noun if column.kind == "text" and rng.random() < 0.4 else rng.choice(cells)
        op = rng.choice((">", "<", "=")) if column.kind in ("int", "real") else "="
        yield dataclasses.replace(query, where=(*query.where, Condition(column, op, (value,)))).sql()


def _extra_limit(query: Query, database: Database, rng: Random) -> Broken:
    """Only the first row, with or without an order that nobody asked for."""
    if query.limit is not None or any(term.function for term in query.select):
        return
    order = rng.choice([None, *(column for column in database.table.columns if not column.needs_cast)])
    if query.join is not None or query.group is not None or query.order is not None:
        order = query.order
    descending = rng.random() < 0.5 if order is not query.order else query.descending
    yield dataclasses.replace(query, order=order, descending=descending, limit=rng.choice((1, 1, 3))).sql()


def _wrong_value(query: Query, database: Database, rng: Random) -> Broken:
    for i, condition in enumerate(query.where):
        table = next((t for t in database.tables if condition.column in t.columns), None)
        if table is None or condition.op not in ("=", ">", "<", ">=", "<="):
            continue
        others = [cell for cell in table.values(condition.column) if cell not in condition.values]
        if condition.column.needs_cast:
            others = [float(cell) if condition.column.kind != "date" else cell[:10] for cell in others]
        if others:
            value = rng.choice(others)
            yield _with_condition(query, i, dataclasses.replace(condition, values=(value,)))
    if query.limit is not None:
        yield dataclasses.replace(query, limit=query.limit + rng.choice((1, 2, 5))).sql()
    if query.having is not None:
        yield dataclasses.replace(query, having=query.having + rng.choice((-3, -2, 2, 3))).sql()


def _missing_distinct(query: Query, database: Database, rng: Random) -> Broken:
    if query.distinct:
        yield dataclasses.replace(query, distinct=False).sql()


def _prose(query: Query, database: Database, rng: Random) -> Broken:
    table, column = query.table, (_used(query) or [database.table.columns[0]])[0].phrase
    if database.language == "en":
        yield rng.choice(
            (
                f"You can find the answer by looking at the {column} in the {table} table.",
                f"The {table} table contains the {column} that you need.",
                f"To answer this, check {column} in {table}.",
            )
        )
    else:
        yield rng.choice((f"可以在{table}表中查看{column}。", f"答案在{table}的{column}里。", f"请查询{table}表。"))


MISTAKES: dict[str, Callable[[Query, Database, Random], Broken]] = {
    "wrong_column": _wrong_column,
    "wrong_table": _wrong_table,
    "missing_cast": _missing_cast,
    "missing_filter": _missing_filter,
    "extra_filter": _extra_filter,
    "extra_limit": _extra_limit,
    "wrong_aggregate": _wrong_aggregate,
    "wrong_operator": _wrong_operator,
    "wrong_value": _wrong_value,
    "missing_distinct": _missing_distinct,
    "hallucinated_column": _hallucinated_column,
    "prose": _prose,
}
