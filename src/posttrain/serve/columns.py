"""Text in columns of a terminal, where a Chinese character is as wide as two letters."""

from __future__ import annotations

import re
import unicodedata
from itertools import zip_longest

BETWEEN = " | "
_WIDE = (
    r"\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\U0001f000-\U0003ffff"
)
# A run of blanks; a wide character with what may not begin a line behind it; a word of others.
_PIECES = re.compile(rf"[ \t]+|[{_WIDE}][、。，．！？；：）」』】》〉]*|[^ \t{_WIDE}]+")
_WITHOUT_WIDTH = ("Mn", "Me", "Cf")


def columns_of(text: str) -> int:
    """How many columns a text takes: two for a wide character, none for one that combines with another."""
    return sum(_columns_of(character) for character in text)


def wrapped(text: str, columns: int) -> list[str]:
    """Lines of at most ``columns`` columns: broken at blanks and around wide characters, in a word if it is too long.

    Args:
        text: of any number of lines.
        columns: at least 2.
    """
    return [line for paragraph in text.split("\n") for line in _wrapped(paragraph.expandtabs(4), columns)]


def side_by_side(left: str, right: str, columns: int) -> str:
    """Two texts beside each other in ``columns`` columns, with a line end behind each line."""
    half = (columns - len(BETWEEN)) // 2
    lines = []
    for one, other in zip_longest(wrapped(left, half), wrapped(right, half), fillvalue=""):
        lines.append(f"{one}{' ' * (half - columns_of(one))}{BETWEEN}{other}".rstrip(" "))
    return "".join(f"{line}\n" for line in lines)


def shown(text: str) -> str:
    """The text without characters that would move the cursor or change colours; each is shown as U+FFFD."""
    return "".join(
        "\ufffd" if unicodedata.category(character) == "Cc" and character not in "\n\t" else character
        for character in text
    )


def _wrapped(line: str, columns: int) -> list[str]:
    lines, current, filled = [], "", 0
    for piece in _PIECES.findall(line):
        size = columns_of(piece)
        if filled + size > columns and filled:
            lines.append(current.rstrip(" "))
            current, filled = "", 0
            if not piece.strip():
                continue
        for character in piece:  # a word that is longer than the line is cut
            size = _columns_of(character)
            if filled + size > columns:
                lines.append(current)
                current, filled = "", 0
            current, filled = current + character, filled + size
    return [*lines, current.rstrip(" ")]


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in _WITHOUT_WIDTH:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
