"""One stage in one process: its memory is its own, is measured exactly and is given back at its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

INTERRUPTED = 130
_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status, negative where a signal ended it.
        interrupted: whether Ctrl-C was passed on to it.
    """

    status: int
    seconds: float
    peak_memory_bytes: int
    interrupted: bool = False


def run_process(command: Sequence[str]) -> Ended:
    """Run a command to its end; what it prints goes where our own output goes.

    Ctrl-C is passed on once, so that the child can write a checkpoint, and a second time, so that it can be stopped
    at once; this function returns only when the child has ended.
    """
    began = time.perf_counter()
    # Where signals are passed on by us, the terminal must not send them to the child as well.
    own_group = {"process_group": 0} if os.name == "posix" else {}
    child = subprocess.Popen(command, **own_group)  # type: ignore[call-overload]
    with _passing_on(child) as seen:
        status, peak = _waited(child) if os.name == "posix" else _watched(child)
    seconds = time.perf_counter() - began
    return Ended(status=status, seconds=seconds, peak_memory_bytes=peak, interrupted=bool(seen))


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """SIGINT, SIGTERM and SIGHUP go to the child; yields the list of those that came."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def pass_on(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        # On Windows the console has told the child already.
        if os.name == "posix" and child.returncode is None:
            # Not Popen.send_signal: it polls, and an end that poll has taken note of is lost to wait4.
            with suppress(ProcessLookupError):
                os.kill(child.pid, signum)

    names = ("SIGINT", "SIGTERM", "SIGHUP") if os.name == "posix" else ("SIGINT",)
    before = {number: signal.signal(number, pass_on) for number in (getattr(signal, name) for name in names)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _waited(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Exit status, and the peak of resident memory as the kernel counted it.

    It counts at least what this process held when it started the child, which is less than any stage needs.
    """
    _, raw, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(raw)
    return child.returncode, int(usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024)


def _watched(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    """As ``_waited`` where there is no wait4: the peak is read while the process lives."""
    import psutil

    peak, process = 0, psutil.Process(child.pid)
    while child.poll() is None:
        try:
            memory = process.memory_info()
            peak = max(peak, int(getattr(memory, "peak_wset", memory.rss)))
        except psutil.Error:
            break
        time.sleep(_POLL_SECONDS)
    return child.wait(), peak
