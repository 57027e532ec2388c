"""A process that runs model-written SQL, one statement after the other, and can be ended at any moment.

It reads requests from standard input and writes answers to standard output, each a length in four bytes and JSON. It
imports the standard library alone, and psycopg for the first statement on a server.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from posttrain.rewards.sql import sqlite
from posttrain.rewards.sql.limits import GRACE_S, MAX_RESULT_BYTES, PlaceError

_HEADER = struct.Struct(">I")
_LARGEST_MESSAGE = 8 * MAX_RESULT_BYTES
_MEMORY_BYTES = 512 * 2**20
_STATM = Path("/proc/self/statm")


def received(stream: BinaryIO) -> bytes | None:
    """The next message; None where the other side has ended."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    size = _HEADER.unpack(header)[0]
    if size > _LARGEST_MESSAGE:
        return None
    content = stream.read(size)
    return content if len(content) == size else None


def send(stream: BinaryIO, content: bytes) -> None:
    """Write one message."""
    stream.write(_HEADER.pack(len(content)) + content)
    stream.flush()


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, sys.stdout.fileno())
    limit_process()
    send(answers, b"")  # ready
    servers = _Servers()
    with open(os.devnull, "w", encoding="utf-8") as silence:
        while (request := received(requests)) is not None:
            send(answers, _encoded(_answer(json.loads(request), servers, silence.fileno())))


def limit_process() -> None:
    """Bound what this process may take, as far as the system can: memory on Linux, no byte written to any file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if _STATM.is_file():
        used = int(_STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = used + _MEMORY_BYTES
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (bound, bound))


class _Servers:
    """PostgreSQL, once it is asked for."""

    def __init__(self) -> None:
        self._connections: Any = None

    def connections(self) -> Any:
        if self._connections is None:
            from posttrain.rewards.sql.postgres import Connections

            self._connections = Connections()
        return self._connections


def _answer(request: dict[str, Any], servers: _Servers, silence: int) -> dict[str, Any]:
    """Rows or an error of the statement; ``mistake`` for a database that cannot be used."""

    @contextlib.contextmanager
    def ended_in_time() -> Iterator[None]:
        # A thread without Python's lock: it ends this process in the middle of whatever call it is in.
        faulthandler.dump_traceback_later(request["time_limit_s"] + GRACE_S, exit=True, file=silence)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    try:
        limits = {name: request[name] for name in ("time_limit_s", "row_limit")}
        if "path" in request:
            with ended_in_time():
                return sqlite.run(request["path"], request["sql"], **limits)
        found: dict[str, Any] = servers.connections().run(request["server"], request["sql"], ended_in_time, **limits)
        return found
    except PlaceError as mistake:
        return {"mistake": str(mistake)}
    except MemoryError:
        return {"error": "the memory limit was reached", "error_class": "too_big"}


def _encoded(answer: dict[str, Any]) -> bytes:
    try:
        return json.dumps(answer, ensure_ascii=False, default=_hexadecimal).encode("utf-8", "replace")
    except MemoryError:
        return b'{"error": "the memory limit was reached", "error_class": "too_big"}'


def _hexadecimal(cell: Any) -> list[str]:
    """Bytes as a list of one text, which no other cell is."""
    return [bytes(cell).hex()]
