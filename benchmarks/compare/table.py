"""The table of docs/performance.md, from the stored pairs alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.compare import ratios
from benchmarks.compare.measuring import ROOT
from benchmarks.compare.rows import ROWS, Row

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results" / "compare"
BEGIN = "<!-- written by `python -m benchmarks.compare --table` -->"
END = "<!-- end of the table -->"
NOTHING = "No comparison is stored yet."
_NAMES = {"trl": "TRL 1.16", "llamafactory": "LLaMA-Factory 0.8.2", "transformers": "transformers `generate`"}
_HEAD = (
    "| stage | peer | the peer's settings | pairs | faster, wall | faster, processor | asked for | "
    "memory, ours : peer | asked for | live tokens/s, ours : peer |"
)


def table(folder: Path = RESULTS) -> str:
    """All rows that were measured, in the order in which they are declared."""
    lines = []
    for row in ROWS:
        entry = _entry(folder, row)
        if entry and entry["pairs"]:
            lines.append(_line(row, entry))
    if not lines:
        return NOTHING
    return "\n".join([_HEAD, "| --- | --- | --- |" + " ---: |" * 7, *lines])


def with_table(page: str, written: str) -> str:
    """The page with what stands between the marks replaced.

    Raises:
        ValueError: it has no marks.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page has no line {BEGIN!r} and {END!r} to write the table between")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{rest.partition(END)[2]}"


def _entry(folder: Path, row: Row) -> Mapping[str, Any] | None:
    path = folder / f"{row.stage}.json"
    if not path.is_file():
        return None
    found: Mapping[str, Any] | None = json.loads(path.read_text(encoding="utf-8"))["rows"].get(row.name)
    return found


def _line(row: Row, entry: Mapping[str, Any]) -> str:
    found = ratios.summary(entry["pairs"])
    pairs = str(found["pairs"]) + (f" (of {found['pairs'] + found['discarded']})" if found["discarded"] else "")
    cells = [row.stage, _NAMES[row.peer_name], row.says, pairs]
    if not found["pairs"]:
        return _row([*cells, *["–"] * 6])
    if found["void"]:
        return _row([*cells, f"void: {found['void']}", *["–"] * 5])
    wall, cpu = (ratios.Ratio(**found[name]) for name in ("wall", "cpu"))
    ours, peer = found["ours"], found["peer"]
    memory = f"{ours['peak_rss_bytes'] / 1e9:.1f} : {peer['peak_rss_bytes'] / 1e9:.1f} GB = {found['memory']:.2f}"
    cells += [
        f"{wall.value:.2f}x [{wall.low:.2f}, {wall.high:.2f}]",
        f"{cpu.value:.2f}x [{cpu.low:.2f}, {cpu.high:.2f}]",
        _asked(row.speed, "≥ {}x", row.speed is not None and wall.value >= row.speed),
        memory,
        _asked(row.memory, "≤ {}", row.memory is not None and found["memory"] <= row.memory),
        f"{ours['tokens_per_second']:.0f} : {peer['tokens_per_second']:.0f}",
    ]
    return _row(cells)


def _asked(value: float | None, form: str, reached: bool) -> str:
    return "" if value is None else f"{form.format(f'{value:g}')} {'✓' if reached else '✗'}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
