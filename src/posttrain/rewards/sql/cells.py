"""Values of results as plain numbers, texts and bytes, whichever database gave them, and when two are the same."""

from __future__ import annotations

import datetime
import json
import math
import re
from decimal import Decimal
from typing import Any

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-9

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?")

Cell = None | int | float | str | bytes


def plain(value: Any) -> Cell:
    """A cell as one of five types.

    A truth value becomes 0 or 1, a whole Decimal an integer and any other a float, an interval its days. Dates and
    times become ISO text; a time stamp at midnight is its date, with or without a driver that knows dates. Arrays and
    objects become JSON.

    >>> plain(Decimal("2.50")), plain(True), plain("2024-05-01 00:00:00")
    (2.5, 1, '2024-05-01')
    """
    if value is None or isinstance(value, float | bytes):
        return value
    if isinstance(value, str):
        return _moment(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return _iso(value)
    if isinstance(value, datetime.timedelta):
        return value / datetime.timedelta(days=1)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, sort_keys=True, default=plain)
    return str(value)


def _iso(value: datetime.date | datetime.time) -> str:
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(datetime.UTC).replace(tzinfo=None)
        return _moment(value.isoformat(sep=" "))
    return value.isoformat()


def _moment(text: str) -> str:
    """ISO time stamps in one spelling: a space, no empty fraction, no midnight."""
    if not 19 <= len(text) <= 29 or (match := _MOMENT.fullmatch(text)) is None:
        return text
    date, time, fraction = match[1], match[2], (match[3] or "").rstrip("0").rstrip(".")
    return date if time == "00:00:00" and not fraction else f"{date} {time}{fraction}"


def is_same(a: Cell, b: Cell) -> bool:
    """Whether two plain cells count as equal.

    Integers, texts and bytes must be equal; a float equals a number within a relative 1e-6 or an absolute 1e-9, NaN
    equals NaN; NULL equals only NULL, text never a number.
    """
    if isinstance(a, int | float) and isinstance(b, int | float):
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        if a != a or b != b:
            return a != a and b != b
        return _is_close(a, b)
    return type(a) is type(b) and a == b


def _is_close(a: float, b: float) -> bool:
    try:
        return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    except OverflowError:  # an integer beyond every float
        return False


def rank(cell: Cell) -> tuple[int, Any]:
    """A sorting key over mixed types, equal for numbers that differ only by rounding."""
    if cell is None:
        return 0, 0
    if isinstance(cell, int | float):
        try:
            number = float(f"{float(cell):.9g}")
        except OverflowError:
            return 2, int(cell)
        return (1, 0.0) if math.isnan(number) else (2, number)
    return 3 + isinstance(cell, bytes), cell
