"""Draw what a command printed on a terminal as an SVG picture, for the documentation.

script -qc "posttrain data show sft.yaml" /dev/null | python scripts/terminal_picture.py docs/images/show.svg 100
"""

from __future__ import annotations

import html
import re
import sys
import unicodedata
from pathlib import Path

COLUMN, LINE, MARGIN = 8.4, 19, 12
COLOURS = {"31": "#f07178", "32": "#8bd649", "33": "#ffcb6b", "39": "#d8dee9", "93": "#ffe08a", "97": "#ffffff"}
GREENS = {"22": "#005f00", "28": "#008700"}
SEQUENCE = re.compile(r"\x1b\[([0-9;]*)m")


def cells(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def restyled(style: dict[str, str], codes: str) -> dict[str, str]:
    """The style after a colour sequence."""
    parts = codes.split(";") if codes else ["0"]
    style = dict(style)
    while parts:
        code = parts.pop(0)
        if code == "0":
            style = {}
        elif code == "1":
            style["weight"] = "bold"
        elif code == "2":
            style["opacity"] = "0.6"
        elif code == "48" and parts[:1] == ["5"]:
            style["back"] = GREENS.get(parts[1], "#333333")
            parts = parts[2:]
        elif code == "49":
            style.pop("back", None)
        elif code in COLOURS:
            style["fill"] = COLOURS[code]
    return style


def wrapped(text: str, width: int) -> list[list[tuple[dict[str, str], str]]]:
    """Lines of (style, run of text), broken where the terminal would break them."""
    lines: list[list[tuple[dict[str, str], str]]] = [[]]
    style: dict[str, str] = {}
    used = 0
    for number, part in enumerate(SEQUENCE.split(text)):
        if number % 2:
            style = restyled(style, part)
            continue
        for character in part:
            if character == "\n" or used + cells(character) > width:
                lines.append([])
                used = 0
            if character == "\n":
                continue
            used += cells(character)
            if lines[-1] and lines[-1][-1][0] == style:
                lines[-1][-1] = (style, lines[-1][-1][1] + character)
            else:
                lines[-1].append((style, character))
    return lines


def drawn(text: str, width: int) -> str:
    """The picture."""
    lines = wrapped(text.rstrip("\n"), width)
    size = (width * COLUMN + 2 * MARGIN, len(lines) * LINE + 2 * MARGIN)
    found = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]:.0f}" height="{size[1]:.0f}" font-size="14" '
        'font-family="DejaVu Sans Mono, Menlo, Consolas, Noto Sans Mono CJK SC, monospace">',
        '<rect width="100%" height="100%" rx="6" fill="#1e222a"/>',
    ]
    for row, line in enumerate(lines):
        x, y = float(MARGIN), MARGIN + row * LINE
        for style, run in line:
            wide = cells(run) * COLUMN
            if "back" in style:
                found.append(f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{LINE}" fill="{style["back"]}"/>')
            names = {"weight": "font-weight", "opacity": "opacity"}
            more = "".join(f' {names[key]}="{style[key]}"' for key in names if key in style)
            if run.strip():
                found.append(
                    f'<text x="{x:.1f}" y="{y + 14}" textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs" '
                    f'fill="{style.get("fill", "#d8dee9")}" xml:space="preserve"{more}>{html.escape(run)}</text>'
                )
            x += wide
    return "\n".join([*found, "</svg>", ""])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    width = int(sys.argv[2]) if len(sys.argv) > 2 else 100
    target.write_text(drawn(sys.stdin.read().replace("\r", ""), width), encoding="utf-8", newline="\n")
