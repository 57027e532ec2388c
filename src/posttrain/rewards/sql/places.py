"""Where a database is: an SQLite file, or a database on a server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config.addresses import HIDDEN, is_database_url, whole, without_password
from posttrain.errors import UserError

PLACE = "{db}"
_SUFFIXES = {".sqlite", ".sqlite3", ".db"}
_KIND = re.compile(r"postgres(ql)?(\+psycopg)?", re.IGNORECASE)


_EXAMPLE = "postgresql://user@host:5432/database"


@dataclass(frozen=True)
class ServerDatabase:
    """A database of a PostgreSQL server.

    Attributes:
        name: its address without password, for people.
        url: with it; a ``{db}`` in the database's name or behind the question mark stands for ``db``.
        db: what data rows call it. is_role_free: whether a role that could write is accepted.
    """

    name: str
    url: str = field(repr=False)
    db: str = ""
    is_role_free: bool = False

    def __str__(self) -> str:
        return self.name

    def request(self) -> dict[str, Any]:
        """What a worker needs to reach it.

        Raises:
            UserError: SQLAlchemy, which reads addresses, is not installed, or finds none.
        """
        try:
            from sqlalchemy.engine import make_url
            from sqlalchemy.exc import ArgumentError
        except ModuleNotFoundError as missing:
            raise UserError(needs_package("SQLAlchemy")) from missing
        try:
            url = make_url(self.url)
        except (ArgumentError, ValueError) as error:
            raise UserError(f"{self} is no address of a database: write {_EXAMPLE}") from error
        query = {name: value for name, value in url.query.items() if isinstance(value, str)}
        own = {"host": url.host, "port": url.port, "user": url.username, "dbname": url.database}
        named = {name: self._filled(value) for name, value in (query | own).items() if value is not None}
        if url.password is not None and str(url.password) != HIDDEN:
            named["password"] = str(url.password)
        schema = named.pop("schema", None)
        return {"name": str(self), "conninfo": named, "schema": schema, "is_role_free": self.is_role_free}

    def _filled(self, value: str | int) -> str | int:
        # After the address was read, so that nothing in a data row can name another server.
        return value.replace(PLACE, self.db) if isinstance(value, str) else value


Place = Path | ServerDatabase


def place(url: str, db: str | None, *, is_role_free: bool = False) -> Place:
    """The database that an address names.

    Args:
        url: ``postgresql://...``, with ``?schema=`` for a schema of it, or ``sqlite:///file``; ``{db}`` stands for
            ``db`` without folder and ending.
        db: what a data row calls its database.
        is_role_free: see ``ServerDatabase``.

    Raises:
        UserError: it is no such address, or has a ``{db}`` that nothing is known for.
    """
    shown = without_password(url)
    if PLACE in url and db is None:
        raise UserError(f"{shown} has a {PLACE}, but the row has no column `db` to put there")
    bare = _bare(db) if db is not None and PLACE in url else ""
    if url.lower().startswith("sqlite:///"):
        return Path(url[len("sqlite:///") :].replace(PLACE, bare))
    if not is_database_url(url):
        raise UserError(f"{shown} is no address of a database: write {_EXAMPLE}, or sqlite:///file")
    kind = url.partition("://")[0]
    if not _KIND.fullmatch(kind):
        raise UserError(f"{shown}: SQL is run on PostgreSQL (postgresql://...) and SQLite files, not on {kind}")
    return ServerDatabase(shown.replace(PLACE, bare), whole(url), bare, is_role_free)


def needs_package(name: str) -> str:
    """The sentence about a package that is not there."""
    return f'PostgreSQL needs the package {name}, which is not installed: pip install "posttrain[sql]"'


def _bare(db: str) -> str:
    """``databases/shop.sqlite`` is called shop on a server."""
    name = db.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    path = Path(name)
    return path.stem if path.suffix.lower() in _SUFFIXES else name
