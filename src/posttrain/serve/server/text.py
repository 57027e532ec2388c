"""The text of a completion while its tokens come: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
"""What a character decodes to of which some tokens are missing."""


class TextStream:
    """Turns tokens into text, piece by piece.

    Tokens are decoded a few at a time, together with those before them, on which their spaces may depend. What may
    become a stop string, or is part of a character, is held back until more is known.

    Attributes:
        text: that is certain; it never ends with a part of a stop string that came.
        is_stopped: whether a stop string came; the text ends before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        """Take how tokens become text, and the stop strings, none of them empty."""
        self.text = ""
        self.is_stopped = False
        self._decode = decode
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._before, self._read = 0, 0  # ids[before:read] are decoded again, for what follows to be read behind them
        self._given = 0

    def add(self, token: int) -> str:
        """Take a token; returns the text that has become certain."""
        self._ids.append(token)
        known = self._decode(self._ids[self._before : self._read])
        found = self._decode(self._ids[self._before :])
        if len(found) > len(known) and found.startswith(known) and not found.endswith(_BROKEN):
            self._append(found[len(known) :])
            self._before, self._read = self._read, len(self._ids)
        return self._certain(len(self.text) - self._open_end())

    def finish(self) -> str:
        """No more tokens come; returns the rest of the text."""
        if not self.is_stopped:
            whole = self._decode(self._ids)
            if len(whole) > len(self.text):
                self._append(whole[len(self.text) :])
        return self._certain(len(self.text))

    def _append(self, piece: str) -> None:
        longest = max(map(len, self._stops), default=0)
        start = max(0, len(self.text) - longest + 1)
        self.text += piece
        found = [place for stop in self._stops if (place := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.is_stopped = self.text[: min(found)], True

    def _open_end(self) -> int:
        """Characters at the end that a stop string may begin with."""
        if self.is_stopped:
            return 0
        ends = [
            size
            for stop in self._stops
            for size in range(min(len(stop) - 1, len(self.text)), 0, -1)
            if self.text.endswith(stop[:size])
        ]
        return max(ends, default=0)

    def _certain(self, end: int) -> str:
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece
