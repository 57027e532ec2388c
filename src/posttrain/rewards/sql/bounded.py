"""Stand-ins for SQLite functions whose time grows with the product of two lengths and that nothing can interrupt."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Any

MAX_ARGUMENT = 200
_STEPS_PER_CHECK = 4096
_ASCII_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_FORMAT_NUMBER = re.compile(r"\d+")
_FORMAT_SPEC = re.compile(r"%%|%[-+ 0#]*\d*(?:\.\d+)?[dieEfgGs]")
_LEADING_NUMBER = re.compile(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")

# Told the size of what a call is about to do; raises LimitError when that is too much or the time is over.
Check = Callable[[int], None]


class LimitError(Exception):
    """A limit was reached; ``error_class`` says which."""

    def __init__(self, error_class: str, message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


def replace_slow_functions(connection: sqlite3.Connection, check: Check, max_bytes: int) -> None:
    """Replace instr, replace, trim, ltrim, rtrim (two arguments), like, printf and format on this connection.

    The results are SQLite's; long second arguments, widths beyond ``MAX_ARGUMENT`` and ``*`` widths are refused.

    Args:
        connection: whose functions are replaced.
        check: see ``Check``.
        max_bytes: of a result.
    """

    def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if any(argument is None for argument in arguments):
                return None
            texts = [_text(argument) for argument in arguments]
            check(len(texts[1]))
            return function(*texts)

        return call

    def replaced(text: str, old: str, new: str) -> str:
        if not old:
            return text
        grown = text.count(old) * max(0, len(new) - len(old))
        check(MAX_ARGUMENT + 1 if len(text) + grown > max_bytes else 0)
        return text.replace(old, new)

    def like(pattern: Any, text: Any, escape: Any = None) -> int | None:
        if pattern is None or text is None:
            return None
        wanted = _text(pattern)
        check(len(wanted))
        return int(_matches(_parts(wanted, None if escape is None else _text(escape)), _text(text), check))

    def formatted(*arguments: Any) -> str | None:
        if not arguments or arguments[0] is None:
            return None
        form = _text(arguments[0])
        check(len(form) + MAX_ARGUMENT * ("*" in form))
        check(max(map(int, _FORMAT_NUMBER.findall(form)), default=0))
        return _formatted(form, arguments[1:])

    for name, function, count in (
        ("instr", bounded(lambda text, part: text.find(part) + 1), 2),
        ("replace", bounded(replaced), 3),
        ("trim", bounded(lambda text, characters: text.strip(characters)), 2),
        ("ltrim", bounded(lambda text, characters: text.lstrip(characters)), 2),
        ("rtrim", bounded(lambda text, characters: text.rstrip(characters)), 2),
        ("like", like, 2),
        ("like", like, 3),
        ("printf", formatted, -1),
        ("format", formatted, -1),
    ):
        connection.create_function(name, count, function, deterministic=True)


def _formatted(form: str, arguments: tuple[Any, ...]) -> str:
    """C's formatting of numbers and text; a missing or NULL argument is 0 or empty, text is read as a number."""
    remaining = iter(arguments)

    def one(match: re.Match[str]) -> str:
        spec, conversion = match.group(), match.group()[-1]
        if spec == "%%":
            return "%"
        value = next(remaining, None)
        if conversion == "s":
            return spec % ("" if value is None else _text(value))
        number = _LEADING_NUMBER.match(_text(value))
        parsed = float(number.group()) if number else 0.0
        if conversion in "di":
            return spec % (value if isinstance(value, int) else int(parsed))
        return spec % parsed

    return _FORMAT_SPEC.sub(one, form)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def _parts(pattern: str, escape: str | None) -> list[str | None]:
    """One entry per pattern character: "" for any single character, None for any run, else the character itself."""
    parts: list[str | None] = []
    characters = iter(pattern.translate(_ASCII_LOWER))
    for character in characters:
        if character == escape:
            parts.append(next(characters, ""))
        elif character == "%":
            parts.append(None)
        else:
            parts.append("" if character == "_" else character)
    return parts


def _matches(parts: list[str | None], text: str, check: Check) -> bool:
    """Wildcard matching that backs up to the last run only; asks ``check`` for the time now and then."""
    text = text.translate(_ASCII_LOWER)
    place = at = steps = 0
    run, run_at = -1, 0
    while at < len(text):
        steps += 1
        if steps % _STEPS_PER_CHECK == 0:
            check(0)
        part = parts[place] if place < len(parts) else "end"
        if part is None:
            run, run_at = place, at
            place += 1
        elif part in ("", text[at]):
            place, at = place + 1, at + 1
        elif run >= 0:
            run_at += 1
            place, at = run + 1, run_at
        else:
            return False
    return all(part is None for part in parts[place:])
