"""What a dialect puts around a query rather than into it: ROWNUM, DUAL, schema names, outer join marks."""

from __future__ import annotations

from typing import Any

from sqlglot import exp
from sqlglot.transforms import eliminate_join_marks


def without_foreign_scopes(tree: exp.Query, source: str, target: str) -> exp.Query:
    """The query without what only its own database knows.

    Args:
        tree: changed in place where it can be. source, target: dialects.
    """
    if source == "oracle":
        if any(column.args.get("join_mark") for column in tree.find_all(exp.Column)):
            changed = eliminate_join_marks(tree)
            assert isinstance(changed, exp.Query)
            tree = changed
        for select in list(tree.find_all(exp.Select)):
            _limit_by_rownum(select)
            _number_rows(select)
    if source in ("oracle", "mysql") and target != "oracle":
        _drop_dual(tree)
    if target == "sqlite":
        for node in tree.find_all(exp.Table, exp.Column):
            node.set("db", None)
            node.set("catalog", None)
    return tree


def _drop_dual(tree: exp.Query) -> None:
    for select in tree.find_all(exp.Select):
        source = select.args.get("from_")
        if source and isinstance(source.this, exp.Table) and source.this.name.upper() == "DUAL":
            select.set("from_", None)


def _is_rownum(node: Any) -> bool:
    return isinstance(node, exp.Column) and not node.table and node.name.upper() == "ROWNUM"


def _limit_by_rownum(select: exp.Select) -> None:
    """``WHERE ROWNUM <= n`` as LIMIT: at once, or around the tables where the rows are then grouped or sorted."""
    where = select.args.get("where")
    if where is None or select.args.get("limit"):
        return
    conditions = list(where.this.flatten()) if isinstance(where.this, exp.And) else [where.this]
    limits = [(condition, _most(condition)) for condition in conditions]
    found = [number for _, number in limits if number is not None]
    if not found:
        return
    rest = [condition.copy() for condition, number in limits if number is None]
    kept = exp.Where(this=exp.and_(*rest, copy=False)) if rest else None
    limit = exp.Limit(expression=exp.Literal.number(max(0, min(found))))
    if not _is_late(select):
        select.set("where", kept)
        select.set("limit", limit)
        return
    source = select.args.get("from_")
    if source is None or select.args.get("joins") or not source.this.alias_or_name:
        return  # rows of several tables cannot be cut before they are sorted without naming all their columns
    inner = exp.Select(expressions=[exp.Star()])
    inner.set("from_", exp.From(this=source.this.copy()))
    inner.set("where", kept)
    inner.set("limit", limit)
    inner.set("offset", exp.Offset(expression=exp.Literal.number(0)))  # without it SQLite sorts before it cuts
    select.set("where", None)
    select.set("from_", exp.From(this=inner.subquery(source.this.alias_or_name)))


def _most(condition: Any) -> int | None:
    """How many rows a condition on ROWNUM lets through; None where it is about something else."""
    condition = condition.unnest()
    if not isinstance(condition, exp.LT | exp.LTE | exp.EQ | exp.Between) or not _is_rownum(condition.this):
        return None
    bound = condition.args.get("high") if isinstance(condition, exp.Between) else condition.expression
    if not isinstance(bound, exp.Literal) or bound.is_string or not bound.this.isdigit():
        return None
    number = int(bound.this)
    if isinstance(condition, exp.EQ):
        return number if number == 1 else 0
    return number - isinstance(condition, exp.LT)


def _is_late(select: exp.Select) -> bool:
    """Whether something happens to the rows after ROWNUM has counted them."""
    names = ("order", "group", "distinct", "having")
    return any(select.args.get(name) for name in names) or any(
        aggregate.find_ancestor(exp.Select) is select
        for item in select.expressions
        for aggregate in item.find_all(exp.AggFunc)
    )


def _number_rows(select: exp.Select) -> None:
    """ROWNUM among what is selected, as a number for each row."""
    for item in select.expressions:
        for column in list(item.find_all(exp.Column)):
            if _is_rownum(column) and column.find_ancestor(exp.Select) is select:
                window = exp.Window(this=exp.RowNumber())
                column.replace(window if item is not column else exp.alias_(window, "ROWNUM"))
