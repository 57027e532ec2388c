"""What Oracle, MySQL and SQLite say and sqlglot leaves as it is, for PostgreSQL: trees changed in place."""

from __future__ import annotations

from typing import Any

from sqlglot import exp

_UNITS = {"DD": "DAY", "DDD": "DAY", "J": "DAY", "MM": "MONTH", "MON": "MONTH", "RM": "MONTH", "Q": "QUARTER"}
_UNITS |= {"YYYY": "YEAR", "YY": "YEAR", "Y": "YEAR", "IW": "WEEK", "HH": "HOUR", "HH24": "HOUR", "MI": "MINUTE"}
_COMPARISONS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.And, exp.Or, exp.Not, exp.Is, exp.In, exp.Like)
_NOW = (exp.CurrentTimestamp, exp.CurrentDate)


def prepare_for_postgres(tree: Any, source: str) -> None:
    """Change what PostgreSQL would refuse or take for something else.

    Args:
        tree: of a query, changed in place. source: its dialect.
    """
    _name_subqueries(tree)
    for node in list(tree.find_all(exp.DateTrunc, exp.TimestampTrunc)):
        unit = node.args["unit"].name.upper()
        node.set("unit", exp.Literal.string(_UNITS.get(unit, unit)))
    if source == "oracle":
        _add_days_and_months(tree)
    if source in ("mysql", "sqlite"):
        _ignore_case(tree, in_comparisons=source == "mysql")
        for total in list(tree.find_all(exp.Sum)):
            if isinstance(total.this.unnest(), _COMPARISONS):
                total.set("this", exp.cast(total.this, "INT"))
    if source == "mysql":
        for node in list(tree.find_all(exp.DateAdd, exp.DateSub)):
            if isinstance(node.this, exp.Literal):
                node.set("this", exp.cast(node.this, "TIMESTAMP"))


def _name_subqueries(tree: Any) -> None:
    """Before version 16 every query in FROM needs a name."""
    number = 0
    for subquery in tree.find_all(exp.Subquery):
        if isinstance(subquery.parent, exp.From | exp.Join) and not subquery.alias:
            number += 1
            subquery.set("alias", exp.TableAlias(this=exp.to_identifier(f"unnamed_{number}")))


def _add_days_and_months(tree: Any) -> None:
    for node in list(tree.find_all(exp.AddMonths)):
        node.replace(_plus(exp.Add, exp.cast(node.this.copy(), "TIMESTAMP"), node.expression.copy(), "MONTH"))
    for node in list(tree.find_all(exp.Add, exp.Sub)):
        if isinstance(node.this.unnest(), _NOW) and isinstance(node.expression.unnest(), exp.Literal | exp.Div):
            node.replace(_plus(type(node), node.this.copy(), node.expression.copy(), "DAY"))


def _plus(kind: Any, moment: Any, amount: Any, unit: str) -> Any:
    span = exp.Interval(this=exp.Literal.string("1"), unit=exp.Var(this=unit))
    return exp.Paren(this=kind(this=moment, expression=exp.Mul(this=exp.Paren(this=amount), expression=span)))


def _ignore_case(tree: Any, *, in_comparisons: bool) -> None:
    """LIKE of SQLite and MySQL does not mind case, MySQL's = with a text neither."""
    for node in list(tree.find_all(exp.Like)):
        node.replace(exp.ILike(**node.args))
    for node in list(tree.find_all(exp.EQ, exp.NEQ)) if in_comparisons else ():
        sides = (node.this, node.expression)
        if any(isinstance(s, exp.Literal) and s.is_string and s.this.lower() != s.this.upper() for s in sides):
            node.set("this", exp.Lower(this=node.this.copy()))
            node.set("expression", exp.Lower(this=node.expression.copy()))
