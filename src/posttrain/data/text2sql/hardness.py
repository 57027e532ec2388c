"""How hard a question is by the SQL that answers it: Spider's four levels, from the statement's tree."""

from __future__ import annotations

import functools
from typing import Any

from posttrain.data.text2sql.parsing import parsed

LEVELS = ("easy", "medium", "hard", "extra")
UNKNOWN = "unknown"


@functools.lru_cache(maxsize=8192)
def hardness(sql: str, dialect: str = "sqlite") -> str:
    """Spider's level of a statement, by counts of what it is made of.

    *Clauses* are WHERE, GROUP BY, ORDER BY, LIMIT, each table after the first, each OR and each LIKE; *nested* are
    queries within conditions and each of UNION, INTERSECT, EXCEPT; *others* are, one point each: more than one
    aggregate, more than one selected column, more than one condition in WHERE, more than one GROUP BY column.

        easy    clauses ≤ 1, others = 0, nested = 0
        medium  nested = 0 and (clauses ≤ 1, others ≤ 2  or  clauses ≤ 2, others ≤ 1)
        hard    nested = 0 and (clauses ≤ 2, others > 2  or  clauses = 3, others ≤ 2),  or  nested ≤ 1 with clauses ≤ 1,
                others = 0
        extra   everything else

    Paper: Yu et al., 2018 (Spider, arXiv:1809.08887), as its evaluation script counts: of set operations the first
    query is looked at, of tables in a nested FROM none, and NOT counts as an aggregate.

    Args:
        sql: the statement. dialect: its own.

    Returns:
        One of ``LEVELS``; "unknown" where it cannot be parsed.

    Raises:
        UserError: sqlglot is not installed.
    """
    tree = parsed(sql, dialect)
    select = _first_select(tree) if tree is not None else None
    if select is None:
        return UNKNOWN
    clauses, nested, others = _clauses(select), _nested(select, tree), _others(select)
    if clauses <= 1 and others == 0 and nested == 0:
        return "easy"
    if nested == 0 and ((others <= 2 and clauses <= 1) or (clauses <= 2 and others < 2)):
        return "medium"
    if nested == 0 and ((others > 2 and clauses <= 2) or (2 < clauses <= 3 and others <= 2)):
        return "hard"
    return "hard" if clauses <= 1 and others == 0 and nested <= 1 else "extra"


def _first_select(tree: Any) -> Any:
    from sqlglot import exp

    while isinstance(tree, exp.SetOperation | exp.Subquery):
        tree = tree.this
    return tree if isinstance(tree, exp.Select) else None


def _conditions(clause: Any) -> tuple[list[Any], int]:
    """The single conditions of a clause, and how many OR join them."""
    from sqlglot import exp

    if clause is None:
        return [], 0
    node = clause.unnest() if isinstance(clause, exp.Paren) else clause
    if isinstance(node, exp.And | exp.Or):
        left, right = _conditions(node.this), _conditions(node.expression)
        return left[0] + right[0], left[1] + right[1] + isinstance(node, exp.Or)
    return [node], 0


def _parts(select: Any) -> list[tuple[list[Any], int]]:
    """Conditions of the joins, of WHERE and of HAVING."""
    joins = [_conditions(join.args.get("on")) for join in select.args.get("joins") or ()]
    clauses = [select.args.get(name) for name in ("where", "having")]
    return joins + [_conditions(clause.this) for clause in clauses if clause is not None]


def _clauses(select: Any) -> int:
    from sqlglot import exp

    count = sum(select.args.get(name) is not None for name in ("where", "group", "order", "limit"))
    count += len(select.args.get("joins") or ())
    for conditions, ors in _parts(select):
        count += ors + sum(isinstance(_positive(condition), exp.Like) for condition in conditions)
    return count


def _positive(condition: Any) -> Any:
    from sqlglot import exp

    while isinstance(condition, exp.Not | exp.Paren):
        condition = condition.this
    return condition


def _nested(select: Any, tree: Any) -> int:
    from sqlglot import exp

    count = int(tree.unnest() is not select)
    for conditions, _ in _parts(select):
        for condition in conditions:
            inner = condition.find_all(exp.Subquery, exp.Select, exp.SetOperation)
            count += sum(_is_outermost(node, condition) for node in inner)
    return count


def _is_outermost(node: Any, condition: Any) -> bool:
    """Whether a query stands in a condition itself and not in another query there."""
    from sqlglot import exp

    above = node.parent
    while above is not None and above is not condition.parent:
        if isinstance(above, exp.Query):
            return False
        above = above.parent
    return True


def _others(select: Any) -> int:
    from sqlglot import exp

    where, group = select.args.get("where"), select.args.get("group")
    order, having = select.args.get("order"), select.args.get("having")
    conditions, _ = _conditions(where.this) if where else ([], 0)
    held, _ = _conditions(having.this) if having else ([], 0)
    aggregates = sum(_is_aggregate(item) for item in select.expressions)
    aggregates += sum(isinstance(condition, exp.Not) for condition in (*conditions, *held))
    aggregates += max(0, len(held) - 1)
    aggregates += sum(bool(item.find(exp.AggFunc)) for item in (order.expressions if order else ()))
    keys = group.expressions if group else ()
    return sum((aggregates > 1, len(select.expressions) > 1, len(conditions) > 1, len(keys) > 1))


def _is_aggregate(item: Any) -> bool:
    from sqlglot import exp

    return isinstance(item.unalias(), exp.AggFunc)
