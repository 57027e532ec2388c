"""How far something long is: a line rewritten in place on a terminal, now and then a line of its own elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Self

_IN_PLACE_SECONDS = 0.2
_LINE_SECONDS = 10.0


def _counted(done: int, total: int) -> str:
    return f"{done} of {total}"


class ProgressLine:
    """Told (what is being done, done, in all), where nothing can be counted with a total of 0.

    Args:
        amount: (done, total) as text.
        clock: seconds that only grow.
    """

    def __init__(
        self, *, amount: Callable[[int, int], str] = _counted, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._amount = amount
        self._clock = clock
        self._in_place = sys.stderr.isatty()
        self._what = ""
        self._pending = ""
        self._shown = -float("inf")
        self._is_open = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show it, unless something was shown just before."""
        now, is_new = self._clock(), what != self._what
        interval = _IN_PLACE_SECONDS if self._in_place else _LINE_SECONDS
        ends_in_place = self._in_place and done >= total
        text = f"{what}: {self._amount(done, total)}" if total > 1 else what
        if not (is_new or ends_in_place or now - self._shown >= interval):
            self._pending = text
            return
        if is_new:
            self.close()
        self._what, self._shown = what, now
        self._show(text)

    def _show(self, text: str) -> None:
        self._pending = ""
        if self._in_place:
            print(f"\rposttrain: {text}\x1b[K", end="", file=sys.stderr, flush=True)
            self._is_open = True
        else:
            print(f"posttrain: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show how far it came, if that was not shown yet, and end the line that is being rewritten."""
        if self._pending:
            self._show(self._pending)
        if self._is_open:
            print(file=sys.stderr)
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
