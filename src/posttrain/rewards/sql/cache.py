"""What statements gave, kept for as long as there is room."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from posttrain.rewards.sql.places import Place
from posttrain.rewards.sql.sandbox import Execution, execute_all

MAX_BYTES = 64_000_000
_PER_CELL = 64
_MAY_PASS = ("timeout", "other")
"""Classes of errors that the same statement need not meet again."""


class CachedExecutions:
    """Runs statements, each only once as long as its result is kept: the least recently used ones are forgotten.

    A file that has changed is another database; a server's databases are taken not to change during a run.
    """

    def __init__(self, *, time_limit_s: float, row_limit: int, max_bytes: int = MAX_BYTES) -> None:
        """Nothing is known yet.

        Args:
            time_limit_s, row_limit: of one statement. max_bytes: about what the results may take.
        """
        self._limits: dict[str, Any] = {"time_limit_s": time_limit_s, "row_limit": row_limit}
        self._max_bytes, self._bytes = max_bytes, 0
        self._known: OrderedDict[Hashable, Execution] = OrderedDict()

    def __call__(self, statements: Sequence[tuple[Place, str]]) -> list[Execution]:
        """One execution for each statement, in order; equal ones are run once, the others beside each other.

        Raises:
            UserError: as ``execute``.
        """
        keys = [_key(db, sql) for db, sql in statements]
        wanted = {key: statement for key, statement in zip(keys, statements, strict=True) if key not in self._known}
        found = dict(zip(wanted, execute_all(list(wanted.values()), **self._limits), strict=True))
        executions = [found[key] if key in found else self._known[key] for key in keys]
        for key in dict.fromkeys(keys):
            if key in self._known:
                self._known.move_to_end(key)
            elif found[key].error_class not in _MAY_PASS:
                self._keep(key, found[key])
        return executions

    def _keep(self, key: Hashable, execution: Execution) -> None:
        size = _size(key, execution)
        if size > self._max_bytes // 4:  # it would drive out everything else
            return
        self._known[key] = execution
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= _size(*self._known.popitem(last=False))


def _key(db: Place, sql: str) -> Hashable:
    if not isinstance(db, Path):
        return db, sql
    try:
        state = os.stat(db)
    except OSError:
        return db, sql
    return db, sql, state.st_mtime_ns, state.st_size


def _size(key: Hashable, execution: Execution) -> int:
    """About what an entry takes in memory."""
    cells = [cell for row in execution.rows or () for cell in row]
    texts = sum(len(cell) for cell in cells if isinstance(cell, str | bytes))
    return _PER_CELL * (len(cells) + 4) + texts + len(str(key))
