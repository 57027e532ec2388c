"""SQL written for one database, put into the words of another one with sqlglot; and statements in one spelling."""

from __future__ import annotations

import functools
import importlib.util
import logging

from posttrain.errors import UserError
from posttrain.rewards.sql.compare import normalized
from posttrain.rewards.sql.sandbox import MAX_SQL_LENGTH

_NAMES = {"postgresql": "postgres", "mariadb": "mysql"}


def require_sqlglot(wanted_by: str) -> None:
    """Refuse what needs sqlglot where it is not installed.

    Raises:
        UserError: with the command that installs it.
    """
    if not has_sqlglot():
        raise UserError(f'{wanted_by} needs the sqlglot library: pip install "posttrain[sql]"')


@functools.cache
def has_sqlglot() -> bool:
    """Whether sqlglot is installed."""
    return importlib.util.find_spec("sqlglot") is not None


def target_of(db: object) -> str:
    """The dialect of a database: what its address begins with; a file is SQLite's.

    >>> target_of("postgresql+psycopg://host/shop"), target_of(Path("shop.sqlite"))
    ('postgres', 'sqlite')
    """
    scheme, found, _ = str(db).partition("://")
    name = scheme.partition("+")[0].lower()
    return _NAMES.get(name, name) if found else "sqlite"


@functools.lru_cache(maxsize=4096)
def translated(sql: str, source: str, target: str) -> str:
    """A query of one dialect in another; as it stands where it cannot be parsed, is no single query, or is too long.

    What comes out runs under the same limits as what a model writes itself.

    Args:
        sql: one statement. source, target: "sqlite", "oracle", "postgres" or "mysql".
    """
    if source == target or len(sql) > MAX_SQL_LENGTH:
        return sql
    import sqlglot

    from posttrain.rewards.sql.translation import READERS, rendered

    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    read = READERS.get(source, source) if target == "sqlite" else source
    try:
        trees = [tree for tree in sqlglot.parse(sql, read=read) if tree is not None]
        if len(trees) != 1 or not isinstance(trees[0], sqlglot.exp.Query):
            return sql
        return rendered(trees[0], source, target)
    except (sqlglot.errors.SqlglotError, RecursionError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return sql  # hostile text: whatever the parser trips over, the database has the last word


def exact_form(sql: str, dialect: str) -> str:
    """A statement in one spelling: that of sqlglot where it is installed and can parse it, else its tokens."""
    if not has_sqlglot() or len(sql) > MAX_SQL_LENGTH:
        return normalized(sql)
    return _canonical(sql, dialect) or normalized(sql)


@functools.lru_cache(maxsize=4096)
def _canonical(sql: str, dialect: str) -> str | None:
    import sqlglot

    from posttrain.rewards.sql.translation import canonical

    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    try:
        return canonical(sqlglot.parse_one(sql, read=dialect), dialect)
    except (sqlglot.errors.SqlglotError, RecursionError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return None
