"""What commands print: sentences on standard error, blocks of results on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any


def num_processes() -> int:
    """How many processes share what was started; more than one under torchrun."""
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdecimal() else 1


def is_first_process() -> bool:
    """Whether this is the process that speaks for all."""
    return num_processes() <= 1 or os.environ.get("RANK", "0") == "0"


def say(sentence: str) -> None:
    """A sentence for the user on standard error, after the program's name."""
    print(f"posttrain: {sentence}", file=sys.stderr, flush=True)


def has_colours() -> bool:
    """Whether standard output is a terminal that shows colours, and the user has nothing against them."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_block(title: str, values: Mapping[str, Any]) -> None:
    """``***** title *****`` and aligned ``key = value`` lines on standard output, sorted by key."""
    if not values:
        return
    shown = {key: shown_value(key, value) for key, value in sorted(values.items())}
    key_width = max(map(len, shown))
    value_width = max(map(len, shown.values()))
    print(f"***** {title} *****")
    for key, value in shown.items():
        print(f"  {key:<{key_width}} = {value:>{value_width}}")
    sys.stdout.flush()


def print_table(columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Metrics down, variants across, on standard output; what is no number or list of numbers is left out."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    rows = [["", *columns]]
    for name in names:
        values = [metrics.get(name, "") for metrics in columns.values()]
        if all(isinstance(value, int | float | list | tuple | str) for value in values):
            rows.append([name, *(shown_value(name, value) for value in values)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows if len(rows) > 1 else ():
        cells = [f"{row[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells).rstrip())
    sys.stdout.flush()


def print_results(results: Mapping[str, Any]) -> None:
    """What a training run returned, as the blocks ``train metrics`` and ``eval metrics``."""
    evaluation = {k: v for k, v in results.items() if k.startswith("eval_") and not k.endswith("_before")}
    training = {k: v for k, v in results.items() if k not in evaluation}
    print_block("train metrics", training)
    if evaluation:
        epoch = {"epoch": results["epoch"]} if "epoch" in results else {}
        print_block("eval metrics", {**epoch, **evaluation})


def shown_value(key: str, value: Any) -> str:
    """One value as a reader wants it: runtimes as H:MM:SS.cc, bytes as GB or MB, numbers with four places.

    >>> shown_value("train_runtime", 16.734)
    '0:00:16.73'
    """
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, int | float):
        if key.endswith("_runtime"):
            return runtime(value)
        if key.endswith("_bytes"):
            return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
        return number(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown_value(key, item) for item in value) + "]"
    return str(value)


def runtime(seconds: float) -> str:
    """Hours, minutes, seconds and hundredths: ``1:02:03.45``."""
    hundredths = round(max(seconds, 0.0) * 100)
    minutes, rest = divmod(hundredths, 6000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest // 100:02d}.{rest % 100:02d}"


def number(value: int | float) -> str:
    """Four decimal places, trailing zeros cut to one; small numbers keep four digits.

    >>> number(3.0), number(0.123456), number(0.0000123456)
    ('3.0', '0.1235', '1.235e-05')
    """
    if isinstance(value, int):
        return str(value)
    if value != value or value in (float("inf"), float("-inf")) or (value and abs(value) < 1e-3):
        return f"{value:.4g}"
    text = f"{value:.4f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text
