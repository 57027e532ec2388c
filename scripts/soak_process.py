"""One start of ``python -m posttrain train``: when to strike it, and where it was when it was struck."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from soak_fork import Fork
from soak_trace import ASK, END

# Python runs this file first in the process under test: asked by a signal, it writes down what the main thread does.
# The command itself stays as users type it. faulthandler would answer at once, also from within C, but asked thousands
# of times it crashes the process now and then.
_SITE = """
import os
if os.environ.get("SOAK_TRACE"):
    import sys
    sys.path.insert(0, os.environ["SOAK_SCRIPTS"])
    import soak_trace
    soak_trace.answer(os.environ["SOAK_TRACE"])
    sys.path.pop(0)
"""
# Names of half-written files, and what was going on when one of them is left behind.
_LEFTOVERS = (
    (re.compile(r"\.(tmp|old)-checkpoint-.*"), "save"),
    (re.compile(r"\.tmp-(model|.*_results\.json)"), "end"),
    (re.compile(r"\.tmp-.*\.jsonl"), "restoring"),
)
# Else: the first of these functions that stands on the stack.
_FUNCTIONS = (
    (r"run_directory\.py\", line \d+, in save_checkpoint", "save"),
    (r"train/run\.py\", line \d+, in (_write_results|_last_evaluation)", "end"),
    (r"monitor\.py\", line \d+, in evaluate|train/run\.py\", line \d+, in _before", "evaluation"),
    (r"online\.py\", line \d+, in rollout", "rollout"),
    (r"engine\.py\", line \d+, in (accumulate|optimizer_step)", "step"),
    (r"(monitor|engine)\.py\", line \d+, in resume", "restoring"),
    (r"(online|offline)\.py\", line \d+, in fit", "loop"),
)
LOADING = "loading"
PLACES = (LOADING, "restoring", "rollout", "step", "loop", "evaluation", "save", "end")
_POLL = 0.0004
_SCRIPTS = str(Path(__file__).parent.resolve())


class Attempt:
    """A started process.

    Attributes:
        out: its ``output_dir``.
    """

    def __init__(self, folder: Path, *overrides: str, forked: bool = False) -> None:
        """Start ``posttrain train train.yaml`` in ``folder``, as a fork of this process where ``forked``."""
        self.out = folder / "out"
        self._trace = folder / "trace.txt"
        self._output = folder / "output.txt"
        self._trace.unlink(missing_ok=True)
        self._before, self._old = self._began_at(), self._names()
        self.started = time.monotonic()
        arguments = ["train", "train.yaml", *overrides]
        self._process: Fork | subprocess.Popen[bytes]
        if forked:
            self._process = Fork(arguments, cwd=folder, output=self._output, trace=self._trace)
        else:
            self._process = self._popen(folder, arguments)

    def _popen(self, folder: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        site = folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
        paths = [str(site.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._output.open("w", encoding="utf-8") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "posttrain", *arguments],
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(paths),
                    "SOAK_TRACE": str(self._trace.resolve()),
                    "SOAK_SCRIPTS": _SCRIPTS,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """What it has said."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    @property
    def trains(self) -> bool:
        """Whether this attempt has come to its loop: it writes its configuration just before."""
        return self._began_at() not in (None, self._before)

    def wait(self, until: Callable[[], bool], seconds: float = 3600) -> bool:
        """Look every fraction of a millisecond until something holds; False when the process or the time ended."""
        deadline = time.monotonic() + seconds
        while not until():
            if self.status is not None or time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True

    def end(self) -> int:
        """Wait for the process."""
        return self._process.wait()

    def pause(self, seconds: float) -> bool:
        """Let it run for a while; False when it ended by itself."""
        return not self.wait(lambda: False, seconds) and self.status is None

    def send(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def reach(self, places: Sequence[str], seconds: float) -> str | None:
        """Ask again and again where it is until it is at one of ``places``; returns which, None when it never was."""
        found: list[str] = []

        def is_there() -> bool:
            found.append(self.place())
            return found[-1] in places

        return found[-1] if self.wait(is_there, seconds) else None

    def place(self) -> str:
        """Where it is now."""
        return _place(self._stack())

    def kill(self, place: str | None = None) -> str | None:
        """SIGKILL; returns the place it was at, or None when it had ended before.

        Args:
            place: where it is known to be; None asks before. What it leaves half-written has the last word.
        """
        place = place or self.place()
        self._process.kill()
        if self._process.wait() != -signal.SIGKILL:
            return None
        return self._left_behind() or place

    def leftovers(self, kind: str) -> bool:
        """Whether a half-written file of this place is there now, one that an earlier attempt left not counted."""
        names = [name for name, number in self._names().items() if self._old.get(name) != number]
        return any(pattern.fullmatch(name) for pattern, place in _LEFTOVERS if place == kind for name in names)

    def halts_in(self, kind: str, later: float) -> bool:
        """Stop it a moment after such a file came up; one that is past this place by then goes on."""
        if not self.leftovers(kind):
            return False
        time.sleep(later)
        self.send(signal.SIGSTOP)
        if self.leftovers(kind):
            return True
        self.send(signal.SIGCONT)
        return False

    def _began_at(self) -> int | None:
        try:
            return (self.out / "config.yaml").stat().st_ino
        except OSError:
            return None

    def _names(self) -> dict[str, int]:
        """Name -> inode of what is in the output folder."""
        try:
            with os.scandir(self.out) as entries:
                return {entry.name: entry.inode() for entry in entries}
        except OSError:
            return {}

    def _left_behind(self) -> str | None:
        return next((place for _, place in _LEFTOVERS if self.leftovers(place)), None)

    def _stack(self) -> str:
        """What it is executing, as ``soak_trace`` writes it; empty when Python itself is not up yet."""
        before = self._trace.stat().st_size if self._trace.is_file() else 0
        if not before:
            return ""
        self.send(ASK)
        stack = ""

        def is_whole() -> bool:
            nonlocal stack
            stack = self._trace.read_bytes()[before:].decode("utf-8", errors="replace")
            return stack.endswith(END)

        self.wait(is_whole, 30.0)
        return stack


def _place(stack: str) -> str:
    return next((place for pattern, place in _FUNCTIONS if re.search(pattern, stack)), LOADING)
