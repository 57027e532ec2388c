"""What an entry of ``reward_funcs`` stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<function>[^\W\d]\w*)")
_LENGTH = re.compile(r"(?P<least>\d*)-(?P<most>\d*)")
_COLUMN_RULES = ("exact_match", "numeric_match")
RULES = ("regex", *_COLUMN_RULES, "json_valid", "length", "repetition")
"""Names of the built-in rules."""


@dataclass(frozen=True, kw_only=True)
class RewardName:
    """One entry of ``reward_funcs``, read.

    Attributes:
        written: as the user wrote it.
        kind: "sql_execution", "judge", "endpoint", "function" or one of ``RULES``.
        label: what it is called in logs.
        arguments: of a function ``file`` and ``function``; of a rule ``pattern``, ``column``, ``least`` and ``most``,
            ``size``.
    """

    written: str
    kind: str
    label: str
    arguments: Mapping[str, Any]


def read_reward_name(text: str) -> RewardName:
    """What one entry of ``reward_funcs`` stands for.

    Raises:
        ValueError: it stands for nothing; the text completes the sentence "`reward_funcs: ...` ...".
    """
    head, colon, argument = text.partition(":")
    if is_url(text):
        check_url(text)
        return RewardName(written=text, kind="endpoint", label="endpoint", arguments={})
    if head in RULES:
        return RewardName(written=text, kind=head, label=head, arguments=_ARGUMENTS[head](argument))
    if text in ("sql_execution", "judge"):
        return RewardName(written=text, kind=text, label=text, arguments={})
    if found := _FUNCTION.fullmatch(text):
        return RewardName(written=text, kind="function", label=found["function"], arguments=found.groupdict())
    raise ValueError(_unknown(text, head, bool(colon)))


def is_url(text: str) -> bool:
    """Whether this is the address of a server."""
    return text.lower().startswith(("http://", "https://"))


def check_url(url: str) -> None:
    """Raise ValueError for an address that cannot be asked, or that holds a password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is no address ({error})") from None
    if not host:
        raise ValueError("is no address: it names no server; write, for example, http://127.0.0.1:8000/score")
    if parts.username or parts.password:
        raise ValueError(
            "holds a user or password, which would be copied into output_dir; put a token into an environment "
            "variable and its name into reward_token_env"
        )


def distinct(labels: list[str]) -> list[str]:
    """Labels with a number behind those that occurred before: regex, regex_2."""
    found: list[str] = []
    for label in labels:
        number, name = 1, label
        while name in found:
            number += 1
            name = f"{label}_{number}"
        found.append(name)
    return found


def _unknown(text: str, head: str, has_argument: bool) -> str:
    if has_argument and head.endswith(".py"):
        return "names no function; write path/to/file.py:function"
    if text.endswith(".py"):
        return f"names a file without a function; write {text}:function"
    known = (*RULES, "sql_execution", "judge")
    near = difflib.get_close_matches(head, known, n=1, cutoff=0.6)
    advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}, file.py:function and http://..."
    return f"is no reward that there is; {advice} A name with a comma in it is written as an item of a list"


def _pattern(argument: str) -> dict[str, Any]:
    if not argument:
        raise ValueError("has no pattern; write regex:PATTERN")
    try:
        re.compile(argument)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return {"pattern": argument}


def _column(argument: str) -> dict[str, Any]:
    return {"column": argument or None}


def _nothing(argument: str) -> dict[str, Any]:
    if argument:
        raise ValueError("takes nothing behind a colon")
    return {}


def _range(argument: str) -> dict[str, Any]:
    found = _LENGTH.fullmatch(argument)
    if found is None or not (found["least"] or found["most"]):
        raise ValueError("has no length; write length:20-400, length:20- or length:-400, in characters")
    least, most = int(found["least"] or 0), int(found["most"]) if found["most"] else None
    if most is not None and (most < least or most == 0):
        raise ValueError("asks for a longest length that is shorter than the shortest, or 0")
    return {"least": least, "most": most}


def _size(argument: str) -> dict[str, Any]:
    if argument and not (argument.isdecimal() and int(argument) > 0):
        raise ValueError("has no number of words behind the colon; write repetition:3")
    return {"size": int(argument or 3)}


_ARGUMENTS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "regex": _pattern,
    **dict.fromkeys(_COLUMN_RULES, _column),
    "json_valid": _nothing,
    "length": _range,
    "repetition": _size,
}
