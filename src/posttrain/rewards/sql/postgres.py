"""One model-written statement on a PostgreSQL server: in a read-only transaction that is always rolled back.

Called in a process of its own (see ``worker``). What keeps a statement from doing harm, one behind the other: the role,
which may only SELECT and is looked at before anything else; the names of functions with side effects, which are
refused; the extended protocol, which takes one statement; the read-only transaction; the rollback, after which the
session is made new.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

from posttrain.rewards.sql.limits import LimitError, PlaceError, fetched
from posttrain.rewards.sql.postgres_role import SIDE_EFFECTS, complaint

try:
    import psycopg
    from psycopg.adapt import AdaptersMap, Buffer, Loader
except ModuleNotFoundError as missing:
    raise PlaceError(
        'PostgreSQL needs the package psycopg, which is not installed: pip install "posttrain[sql]"'
    ) from missing

MAX_CONNECTIONS = 4
"""That a process keeps open; a server has few to give, and a data set may have hundreds of databases."""
_ATTEMPTS = 3
_SETTINGS = (
    ("work_mem", "16MB"),
    ("hash_mem_multiplier", "1"),
    ("temp_file_limit", "256MB"),  # for superusers, and roles that were granted SET on it
    ("lock_timeout", "1s"),
    ("idle_in_transaction_session_timeout", "60s"),
    ("client_connection_check_interval", "1s"),
    ("max_parallel_workers_per_gather", "0"),
    ("jit", "off"),
    ("standard_conforming_strings", "on"),
    ("bytea_output", "hex"),
    ("datestyle", "ISO, YMD"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "1"),
    ("xmloption", "content"),
)
_CALL = re.compile(r'([^\W\d][\w$]*)"?(?=\s*(?:\(|/\*|--))')
_CODED_NAME = re.compile(r'u&"', re.IGNORECASE)
_CLASSES = {
    "42P01": "no_such_table",
    "3F000": "no_such_table",
    "42703": "no_such_column",
    "42601": "syntax",
    "57014": "timeout",
    "55P03": "timeout",
    "42501": "forbidden",
    "25006": "forbidden",
    "0A000": "forbidden",
}
_CLASSES_OF_BEGINNINGS = {"53": "too_big", "54": "too_big", "22": "other"}


class Connections:
    """The sessions of this process, the last used ones kept."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Session] = OrderedDict()

    def run(
        self, server: dict[str, Any], sql: str, ended_in_time: Callable[[], Any], *, time_limit_s: float, row_limit: int
    ) -> dict[str, Any]:
        """What one statement gives, as a worker answers it; of an empty one, that the server can be used.

        Args:
            server: what ``ServerDatabase.request`` gave. sql: the statement.
            ended_in_time: a context in which this process is ended should nothing else stop the statement.
            time_limit_s: of the statement, without connecting. row_limit: a longer result is an error.

        Raises:
            PlaceError: the server or the database is not there, or the role is none to run such statements under.
        """
        key = repr(server)
        for is_last in (False, True):
            session = self._session(key, server)
            if not sql:
                return {}
            try:
                return session.run(sql, ended_in_time, time_limit_s, row_limit)
            except _LostError as lost:
                if is_last:  # it was not somebody else who ended the session
                    return {"error": f"the connection was lost: {lost}", "error_class": "other"}
            finally:
                if session.is_lost:
                    self._open.pop(key, None)
        raise AssertionError("unreachable")

    def _session(self, key: str, server: dict[str, Any]) -> _Session:
        session = self._open.pop(key, None)
        if session is None:
            while len(self._open) >= MAX_CONNECTIONS:
                self._open.popitem(last=False)[1].close()
            session = _Session(server)
        self._open[key] = session
        return session


class _LostError(Exception):
    """The connection ended under a statement."""


class _Session:
    """One connection, as new before every statement."""

    def __init__(self, server: dict[str, Any]) -> None:
        """Connect, look at the role, and find out which limits the server lets it set.

        Raises:
            PlaceError: see ``Connections.run``.
        """
        self._name, self._schema = server["name"], server["schema"]
        self._connection = _connected(self._name, server["conninfo"])
        try:
            if not server["is_role_free"] and (found := complaint(self._connection)):
                raise PlaceError(f"{self._name}: {found}")
            self._check_schema()
            self._settings = self._accepted()
            self._forbidden = {row[0] for row in self._connection.execute(SIDE_EFFECTS)}
        except psycopg.Error as error:
            raise PlaceError(f"{self._name}: the server stops answering ({_said(error)})") from error

    @property
    def is_lost(self) -> bool:
        """Whether it can take no further statement."""
        return self._connection.closed or self._connection.broken

    def close(self) -> None:
        """End the session."""
        self._connection.close()

    def run(self, sql: str, ended_in_time: Callable[[], Any], time_limit_s: float, row_limit: int) -> dict[str, Any]:
        """See ``Connections.run``.

        Raises:
            _LostError: the connection ended.
        """
        deadline = time.monotonic() + time_limit_s
        try:
            with ended_in_time():
                self._refuse(sql)
                self._connection.execute(self._beginning(time_limit_s).encode())
                with self._connection.cursor() as cursor:
                    # One row at a time by the extended protocol: one statement, and a result that ends at its limit.
                    stream: Any = cursor.stream(sql.encode())
                    with contextlib.closing(stream):
                        rows = fetched(stream, row_limit, lambda: time.monotonic() > deadline)
                    columns = [entry.name for entry in cursor.description or ()] if rows else self._columns(sql)
                return {"rows": rows, "columns": columns}
        except LimitError as refusal:
            return {"error": str(refusal), "error_class": refusal.error_class}
        except MemoryError:
            self.close()
            return {"error": "the memory limit was reached", "error_class": "too_big"}
        except psycopg.Error as error:
            return self._failure(error)
        finally:
            self._renew(ended_in_time)

    def _columns(self, sql: str) -> list[str]:
        """Names of the columns of a statement that has run, which gave no row to tell them."""
        self._connection.pgconn.prepare(b"", sql.encode())
        found = self._connection.pgconn.describe_prepared(b"")
        return [(found.fname(place) or b"").decode("utf-8", "replace") for place in range(found.nfields)]

    def _refuse(self, sql: str) -> None:
        """Refuse names of functions with side effects, wherever they stand, strings and comments too.

        Raises:
            LimitError: there is one.
        """
        if _CODED_NAME.search(sql):
            raise LimitError("forbidden", 'names in code, U&"...", are not allowed')
        for match in _CALL.finditer(sql):
            if match[1].lower() in self._forbidden:
                raise LimitError(
                    "forbidden",
                    f"the function {match[1]} is not allowed: it is VOLATILE, so it may have side effects, or runs SQL",
                )

    def _failure(self, error: psycopg.Error) -> dict[str, Any]:
        state = error.sqlstate or ""
        if "memory" in str(error) and not state:  # the client's own
            self.close()
            return {"error": "the memory limit was reached", "error_class": "too_big"}
        if state.startswith("57P") or (not state and self.is_lost):
            self.close()
            raise _LostError(_said(error))
        error_class = _CLASSES.get(state) or _CLASSES_OF_BEGINNINGS.get(state[:2], "other")
        if "multiple commands" in str(error):
            error_class = "multiple_statements"
        return {"error": _said(error), "error_class": error_class}

    def _renew(self, ended_in_time: Callable[[], Any]) -> None:
        """Roll back, then drop whatever outlives a transaction: settings, locks, prepared statements, cursors."""
        if self.is_lost:
            return
        try:
            with ended_in_time():
                self._connection.execute(b"ROLLBACK")
                self._connection.execute(b"DISCARD ALL")
        except psycopg.Error:
            self.close()

    def _beginning(self, time_limit_s: float) -> str:
        limit = f"SET LOCAL statement_timeout = {max(1, round(time_limit_s * 1000))}"
        return "; ".join(["BEGIN READ ONLY", *self._settings, limit])

    def _accepted(self) -> list[str]:
        """Those of our limits that this version of the server has and this role may set."""
        settings = [*_SETTINGS]
        found = []
        for name, value in settings:
            text = f"SET LOCAL {name} = '{value}'"
            with contextlib.suppress(psycopg.DatabaseError):
                self._connection.execute(f"BEGIN; {text}".encode())
                found.append(text)
            self._connection.execute(b"ROLLBACK")
        if self._schema:
            quoted = '"' + self._schema.replace('"', '""') + '"'
            found.append(f"SET LOCAL search_path = {quoted}")
        return found

    def _check_schema(self) -> None:
        if self._schema is None:
            return
        known = [row[0] for row in self._connection.execute("SELECT nspname FROM pg_namespace ORDER BY 1")]
        if self._schema not in known:
            own = ", ".join(name for name in known if not name.startswith("pg_") and name != "information_schema")
            raise PlaceError(f"{self._name}: there is no schema {self._schema!r} in this database (there are: {own})")


def _connected(name: str, conninfo: dict[str, Any]) -> psycopg.Connection:
    """A connection; what may pass, such as a server that is starting, is waited for.

    Raises:
        PlaceError: there is none to be had; says why, without the password.
    """
    keys = {"connect_timeout": 10, "application_name": "posttrain", **conninfo, "client_encoding": "UTF8"}
    for attempt in range(_ATTEMPTS):
        try:
            return psycopg.connect(**keys, autocommit=True, prepare_threshold=None, context=_adapters())
        except psycopg.OperationalError as error:
            text = " ".join(str(error).split())
            if password := conninfo.get("password"):
                text = text.replace(password, "***")
            if attempt + 1 == _ATTEMPTS or _is_final(text):
                raise PlaceError(_advice(name, text)) from None
            time.sleep(0.5 * 2**attempt)
        except (psycopg.Error, ValueError, TypeError) as error:
            raise PlaceError(f"{name}: the address cannot be used ({_said(error)})") from None
    raise AssertionError("unreachable")


def _is_final(text: str) -> bool:
    return any(words in text for words in ("authentication", "does not exist", "no password", "pg_hba", "resolve host"))


def _advice(name: str, text: str) -> str:
    if "database" in text and "does not exist" in text:
        return (
            f"{name}: there is no such database on the server; create it, or correct `database_url` or the column `db`"
        )
    if "no password" in text or "password authentication failed" in text:
        return (
            f"{name}: the server does not accept the password ({text}); put it into the environment variable "
            "PGPASSWORD or into ~/.pgpass"
        )
    return f"{name}: no connection to the server ({text}); start it, or correct `database_url`"


def _said(error: BaseException) -> str:
    """The error on one line, without the text of the statement."""
    diagnosis = getattr(error, "diag", None)
    return " ".join(((diagnosis and diagnosis.message_primary) or str(error) or type(error).__name__).split())


class _Text(Loader):
    """Whatever is no number, as the server writes it."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "replace")


class _Bool(Loader):
    def load(self, data: Buffer) -> int:
        return int(bytes(data) == b"t")


class _Bytes(Loader):
    def load(self, data: Buffer) -> bytes:
        return bytes.fromhex(bytes(data)[2:].decode("ascii"))


class _Whole(Loader):
    def load(self, data: Buffer) -> int:
        return int(bytes(data))


class _Number(Loader):
    """A whole number as an int, any other as a float; what is not a number as text, so that it equals itself."""

    def load(self, data: Buffer) -> int | float | str:
        text = bytes(data).decode("ascii")
        if text == "NaN":
            return text
        try:
            exact = Decimal(text)
        except InvalidOperation:
            return text
        if exact.is_finite() and exact.adjusted() < 18 and exact == exact.to_integral_value():
            return int(exact)
        return float(exact)


def _adapters() -> AdaptersMap:
    """Numbers, bytes and text; every other type stays the text that the server sends."""
    found = AdaptersMap(types=psycopg.adapters.types)
    found.register_loader(0, _Text)
    for names, loader in (
        (("int2", "int4", "int8", "oid"), _Whole),
        (("float4", "float8", "numeric"), _Number),
        (("bool",), _Bool),
        (("bytea",), _Bytes),
    ):
        for name in names:
            found.register_loader(name, loader)
    return found
