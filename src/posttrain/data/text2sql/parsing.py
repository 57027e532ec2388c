"""Statements as trees of sqlglot."""

from __future__ import annotations

from typing import Any

from posttrain.errors import UserError


def parsed(sql: str, dialect: str = "sqlite") -> Any:
    """The tree of one statement; None where it cannot be parsed.

    Raises:
        UserError: sqlglot is not installed.
    """
    try:
        import sqlglot
    except ModuleNotFoundError:
        raise UserError('reading SQL needs the sqlglot library: pip install "posttrain[sql]"') from None
    try:
        return sqlglot.parse_one(sql, read=dialect)
    except (sqlglot.errors.SqlglotError, RecursionError, ValueError, TypeError, AttributeError, IndexError, KeyError):
        return None
