"""The warm processes that run SQL: taken, asked, replaced when they have ended."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, cast

from posttrain.errors import RewardError
from posttrain.rewards.sql.limits import GRACE_S
from posttrain.rewards.sql.worker import received, send

MAX_WORKERS = 8
CONNECT_S = 45.0
"""What reaching a server may take beyond the statement itself."""
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from posttrain.rewards.sql.worker import main; main()"
_TICK_S = 0.25
_GROUP: dict[str, Any] = (
    {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)}
    if os.name == "nt"
    else {"start_new_session": True}  # Ctrl-C is for the run, which ends its workers
)


class EndedError(Exception):
    """A statement ended its process, or had to be ended with it; ``seconds`` after it was sent."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the process ended after {seconds:.1f} s")
        self.seconds = seconds


class Worker:
    """One process; its ``deadline`` is when whoever watches should end it."""

    def __init__(self) -> None:
        """Start it and wait until it can be asked.

        Raises:
            RewardError: it cannot be started; says what it said.
        """
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        self.deadline = float("inf")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", "-c", _BOOT, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                **_GROUP,
            )
        except OSError as error:
            self._said.close()
            raise RewardError(f"no process can be started to run SQL in: {error}") from error
        if received(cast(Any, self._process.stdout)) is None:
            self._process.wait()
            self._said.seek(0)
            words = self._said.read().decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
            self.close()
            raise RewardError(f"the process that runs SQL ends as soon as it begins: {words[-1]}")

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def answer(self, request: bytes, limit_s: float) -> bytes | None:
        """What it answers; None where it ended instead.

        Args:
            request: JSON. limit_s: after which it may be ended.

        Raises:
            BrokenPipeError: it had ended before.
        """
        self.deadline = time.monotonic() + limit_s
        try:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            send(cast(Any, self._process.stdin), request)
            return received(cast(Any, self._process.stdout))
        finally:
            self.deadline = float("inf")

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()

    def close(self) -> None:
        """End the process and give back what it held."""
        self.end()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be sent any more
                    pipe.close()
        self._said.close()


class Pool:
    """At most ``size`` workers, started when needed. Any thread may ask."""

    def __init__(self, size: int) -> None:
        """Nothing is started yet."""
        self.size = size
        self._slots = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._closed = threading.Event()
        self._watch: threading.Thread | None = None

    def answer(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """What a worker answers; a free one is waited for.

        Args:
            request: see ``worker``. limit_s: after which its process is ended.

        Raises:
            EndedError: the statement ended its process.
            RewardError: no process can be started.
        """
        content = json.dumps(request).encode()
        with self._slots:
            found, seconds = self._first_answer(content, limit_s)
        if found is None:
            raise EndedError(seconds)
        return cast("dict[str, Any]", json.loads(found))

    def _first_answer(self, content: bytes, limit_s: float) -> tuple[bytes | None, float]:
        """The answer and the seconds it took, of the second worker where the first had ended while it was idle."""
        for is_last in (False, True):
            worker, found, began = self._taken(), None, time.monotonic()
            try:
                found = worker.answer(content, limit_s)
                return found, time.monotonic() - began
            except OSError as error:
                if is_last:
                    raise RewardError(f"the processes that run SQL cannot be asked ({error})") from error
            finally:
                self._give_back(worker, is_fit=found is not None)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End all workers."""
        self._closed.set()
        with self._lock:
            workers = [*self._idle, *self._busy]
            self._idle.clear()
        for worker in workers:
            worker.close()

    def _taken(self) -> Worker:
        with self._lock:
            if self._watch is None:
                self._watch = threading.Thread(target=self._end_late, daemon=True, name="sql watch")
                self._watch.start()
            worker = self._idle.pop() if self._idle else None
        worker = worker or Worker()
        with self._lock:
            self._busy.add(worker)
        return worker

    def _give_back(self, worker: Worker, *, is_fit: bool) -> None:
        with self._lock:
            self._busy.discard(worker)
            if is_fit and not self._closed.is_set():
                self._idle.append(worker)
                return
        worker.close()

    def _end_late(self) -> None:
        """Workers end themselves in time; this is for one that cannot."""
        while not self._closed.wait(_TICK_S):
            with self._lock:
                late = [worker for worker in self._busy if time.monotonic() > worker.deadline]
            for worker in late:
                worker.end()


_pools: dict[int, Pool] = {}
_pools_lock = threading.Lock()


def pool() -> Pool:
    """The workers of this process."""
    with _pools_lock:
        own = _pools.get(os.getpid())
        if own is None:  # the first call, or the first one in a forked process, whose parent's workers are not its own
            own = _pools[os.getpid()] = Pool(max(1, min(os.cpu_count() or 1, MAX_WORKERS)))
            atexit.register(own.close)
        return own


def limit_of(time_limit_s: float, *, is_server: bool) -> float:
    """Seconds after which a process that still runs a statement is ended from outside."""
    return time_limit_s + 4 * GRACE_S + (CONNECT_S if is_server else 0.0)
