"""Pieces on a terminal or in a pipe: colours, or marks that a reader and ``grep`` can find."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from posttrain.diagnose.pieces import Piece

# Foreground and background, two of each so that the borders between tokens show.
_TRAINS = ("97;48;5;28", "97;48;5;22")
_READS = ("39", "2")
_SPECIAL = "1;33"
_SPECIAL_TRAINS = "1;93;48;5;28"
_CUT = "31"
_TITLE = "1"
_FAINT = "2"


class Paint:
    """Colours, or none.

    Attributes:
        colours: False marks trained text as ``{+text+}`` and cuts as ``{-12 tokens cut-}``.
    """

    def __init__(self, colours: bool) -> None:
        """See ``colours``."""
        self.colours = colours

    def legend(self) -> str:
        """What the colours, or the marks, mean."""
        if not self.colours:
            return "{+trains+}, the rest is read only; {-n tokens cut-} where cutoff_len left something out"
        samples = (self._in(_TRAINS[0], " trains "), "the rest is read only")
        return ", ".join((*samples, self._in(_SPECIAL, "<special token>"), self._in(_CUT, "<n tokens cut>")))

    def title(self, text: str) -> str:
        """The line above a row."""
        return self._in(_TITLE, text)

    def faint(self, text: str) -> str:
        """What is beside the matter."""
        return self._in(_FAINT, text)

    def text(self, row: Sequence[Piece]) -> str:
        """The text of a row."""
        if self.colours:
            turns = itertools.cycle((0, 1))
            return "".join(self._piece(piece, next(turns)) for piece in row)
        return "".join(
            f"{{+{text}+}}" if trains else text
            for trains, text in ((trains, "".join(map(_plain, run))) for trains, run in _runs(row))
        )

    def ids(self, row: Sequence[Piece]) -> str:
        """The token ids of a row."""
        words = []
        for trains, run in _runs(row):
            numbers = " ".join(str(token) for piece in run for token in piece.ids)
            if numbers and self.colours:
                numbers = self._in(_TRAINS[0] if trains else _READS[0], numbers)
            elif numbers and trains:
                numbers = f"{{+{numbers}+}}"
            words.append(numbers)
        return " ".join(word for word in words if word)

    def _piece(self, piece: Piece, turn: int) -> str:
        if piece.cut:
            return self._in(_CUT, f"<{piece.cut} tokens cut>")
        style = (_TRAINS if piece.trains else _READS)[turn]
        if piece.is_special:
            style = _SPECIAL_TRAINS if piece.trains else _SPECIAL
        lines = _harmless(piece.text).split("\n")
        return "\n".join(self._in(style, line + ("↵" if i + 1 < len(lines) else "")) for i, line in enumerate(lines))

    def _in(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self.colours and text else text


def _plain(piece: Piece) -> str:
    return f"{{-{piece.cut} tokens cut-}}" if piece.cut else _harmless(piece.text)


def _runs(row: Iterable[Piece]) -> list[tuple[bool, list[Piece]]]:
    """Neighbours that all train, or do not."""
    return [(trains, list(run)) for trains, run in itertools.groupby(row, key=lambda piece: piece.trains)]


def _harmless(text: str) -> str:
    """The text without what would move the cursor or change colours of the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() or c == "\ufffd" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return (
        character if character.isspace() and character not in "\r\v\f\x1c\x1d\x1e\x1f\x85" else ascii(character)[1:-1]
    )
