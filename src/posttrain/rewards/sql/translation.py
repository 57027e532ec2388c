"""Trees of sqlglot as text: in another dialect, with what sqlglot leaves undone; or in one spelling."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from sqlglot import ErrorLevel, exp
from sqlglot.dialects.oracle import Oracle
from sqlglot.dialects.postgres import Postgres
from sqlglot.dialects.sqlite import SQLite

from posttrain.rewards.sql.scopes import without_foreign_scopes
from posttrain.rewards.sql.to_postgres import prepare_for_postgres

MAX_TEXT = 20_000
MAX_WORK = 200_000
"""Characters written for parts of one statement: chains of a thousand sums would else take a minute."""
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*")


class TooLongError(ValueError):
    """A translation grows beyond what would be run."""


class BacktickedSQLite(SQLite):
    """SQLite's dialect with names in backticks: a name in double quotes that is no column would be taken for text."""

    class Tokenizer(SQLite.Tokenizer):
        """Backticks first: those are written."""

        IDENTIFIERS: ClassVar = ["`", '"', ("[", "]")]


class PostgresForms(Postgres):
    """PostgreSQL with the forms of TO_CHAR and TO_DATE left as they are written."""

    TIME_MAPPING: dict[str, str] = {}  # noqa: RUF012 - so sqlglot declares it


class OracleForms(Oracle):
    """Oracle likewise."""

    TIME_MAPPING: dict[str, str] = {}  # noqa: RUF012 - so sqlglot declares it


READERS = {"postgres": PostgresForms, "oracle": OracleForms}
"""Dialects as they are read where dates are translated here and not by sqlglot."""


class Writer:
    """Text of parts of a tree, and what is known of them while it is rewritten from its leaves up.

    Attributes:
        source: the dialect that the statement is written in.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._work = 0

    def text(self, node: Any) -> str:
        """A part as SQLite reads it, safe to be put into something larger.

        Raises:
            TooLongError: it has grown too long.
        """
        said = sqlite_text(node)
        self._work += len(said)
        if len(said) > MAX_TEXT or self._work > MAX_WORK:
            raise TooLongError("the translation is too long")
        simple = isinstance(node, exp.Column | exp.Literal | exp.Paren | exp.Func | exp.Var | exp.Subquery)
        return said if simple and not isinstance(node, exp.Connector) else f"({said})"

    def moment(self, node: Any) -> str | None:
        """ "date", "timestamp" or "days" (a span) where the part is known to be one."""
        if "moment" in node.meta:
            return str(node.meta["moment"])
        if isinstance(node, exp.Paren | exp.Max | exp.Min | exp.Coalesce):
            return self.moment(node.this)
        if isinstance(node, exp.CurrentDate | exp.DateStrToDate | exp.Date | exp.TsOrDsToDate | exp.UtcDate):
            return "date"
        return None


Rule = Callable[[Any, Writer], "str | tuple[str, str] | None"]
"""A node whose parts are SQLite's already -> its text, with what moment it is where that is known; None: as it is."""


def rendered(tree: exp.Query, source: str, target: str) -> str:
    """A query of one dialect in the words of another.

    Raises:
        TooLongError: it would be too long to run.
    """
    from posttrain.rewards.sql.to_sqlite import RULES

    query: Any = without_foreign_scopes(tree.copy(), source, target)
    if target == "postgres":
        prepare_for_postgres(query, source)
    if target != "sqlite":
        return str(query.sql(target, unsupported_level=ErrorLevel.IGNORE, comments=False))
    writer = Writer(source)
    for node in _leaves_first(query):
        rule = RULES.get(type(node))
        made = rule(node, writer) if rule else None
        if made is None:
            continue
        text, moment = made if isinstance(made, tuple) else (made, None)
        if len(text) > MAX_TEXT:
            raise TooLongError("the translation is too long")
        new = exp.Var(this=text)
        if moment:
            new.meta["moment"] = moment
        node.replace(new)
    return sqlite_text(query)


def _leaves_first(tree: Any) -> Iterator[Any]:
    return iter(reversed(list(tree.bfs())))


def sqlite_text(node: Any) -> str:
    """A tree as SQLite reads it."""
    return str(node.sql(BacktickedSQLite, unsupported_level=ErrorLevel.IGNORE, comments=False))


def canonical(tree: Any, dialect: str) -> str:
    """A statement in one spelling: names in lower case, no needless quotes, comments or ASC, one sign for unequal."""
    tree = tree.copy()
    for name in tree.find_all(exp.Identifier):
        if not name.args.get("quoted") or (dialect in ("sqlite", "mysql") and _PLAIN_NAME.fullmatch(name.this)):
            name.set("this", name.this.lower())
            name.set("quoted", False)
    for join in tree.find_all(exp.Join):
        if join.args.get("kind") == "INNER":
            join.set("kind", None)
    for ordered in tree.find_all(exp.Ordered):
        ordered.set("desc", bool(ordered.args.get("desc")) or None)
    return str(tree.sql(dialect, comments=False, unsupported_level=ErrorLevel.IGNORE))
