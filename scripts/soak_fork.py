"""Starting ``posttrain train`` as a fork of this process, which has imported everything already: ten times cheaper."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from soak_trace import answer


class Fork:
    """A child process with the face of ``subprocess.Popen``."""

    def __init__(self, arguments: Sequence[str], *, cwd: Path, output: Path, trace: Path) -> None:
        """Start it.

        Args:
            arguments: of the command ``posttrain``.
            cwd: the folder it runs in.
            output: receives what it prints.
            trace: where it writes its stack when it is asked.
        """
        import posttrain.train.run  # noqa: F401  (in the parent, once)

        places = [path.resolve() for path in (cwd, output, trace)]
        sys.stdout.flush()
        sys.stderr.flush()
        self._status: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os._exit(_run(arguments, *places))

    def poll(self) -> int | None:
        """Exit status, or minus the signal it died of; None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait(self) -> int:
        """Wait for its end; its exit status."""
        while self.poll() is None:
            time.sleep(0.001)
        assert self._status is not None
        return self._status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self._pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def _run(arguments: Sequence[str], cwd: Path, output: Path, trace: Path) -> int:
    """In the child: what a process of its own would do, from the command line on."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(cwd)
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        answer(trace)
        from posttrain.cli import main

        status = main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return status
