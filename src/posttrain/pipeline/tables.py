"""Tables of a report, each made once and written twice: as Markdown and for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first column is text, the others are numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As GitHub reads it."""
        rule = ("---", *("---:" for _ in self.header[1:]))
        lines = (self.header, rule, *self.rows)
        return "\n".join("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in lines)

    def terminal(self) -> str:
        """In aligned columns."""
        lines = [self.header, *self.rows]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        shown = [_aligned(row, widths) for row in lines]
        return "\n".join([shown[0], "-" * max(map(_width, shown)), *shown[1:]])


def share(value: float, interval: Sequence[float] | None = None) -> str:
    """A share in percent, with its interval: ``41.7 % [32.3, 51.7]``."""
    text = f"{100 * value:.1f} %"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def number(value: float, interval: Sequence[float] | None = None, *, places: int = 2) -> str:
    """A number, with its interval."""
    text = f"{value:.{places}f}"
    return text if interval is None else f"{text} [{interval[0]:.{places}f}, {interval[1]:.{places}f}]"


def signed(value: float, interval: Sequence[float], *, percent: bool) -> str:
    """A difference with its sign and interval; shares in percentage points."""
    factor, places, unit = (100, 1, " points") if percent else (1, 2, "")
    low, high = (f"{factor * bound:+.{places}f}" for bound in interval)
    return f"{factor * value:+.{places}f}{unit} [{low}, {high}]"


def code(text: str, limit: int = 300) -> str:
    """Text from a model as inline code: on one line, cut to ``limit`` characters, whatever it holds."""
    plain = " ".join(text.split())
    plain = plain if len(plain) <= limit else plain[: limit - 1] + "…"
    if not plain:
        return "(empty)"
    fence = "`"
    while fence in plain:
        fence += "`"
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def block(text: str) -> str:
    """Text as a fenced block that nothing in it can close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0] + " " * (widths[0] - _width(row[0]))
    rest = (" " * (width - _width(cell)) + cell for cell, width in zip(row[1:], widths[1:], strict=True))
    return "  ".join((first, *rest)).rstrip()


def _width(text: str) -> int:
    """Columns in a terminal, where Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
