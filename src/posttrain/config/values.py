"""What a written value becomes: YAML scalars and command-line text to the types that the dataclasses declare."""

from __future__ import annotations

import difflib
import math
import os
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from posttrain.config.options import accepts_none, type_words, without_none

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


class MismatchError(ValueError):
    """A value that does not fit its key; the text completes the sentence "`key` ..."."""


def shown(value: object) -> str:
    """A value as a user would write it, cut to a readable length."""
    if value is None or isinstance(value, bool):
        return "empty" if value is None else str(value).lower()
    text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def convert(value: object, hint: Any, limits: Mapping[str, Any] | None = None) -> Any:
    """The value as the type ``hint``, within its limits.

    Args:
        value: what YAML, JSON or a Python caller gave.
        hint: the field's type: str, int, float, bool, Literal, tuple of str, or a union of them with None.
        limits: the field's metadata (``minimum``, ``above``, ``maximum``, ``below``, ``path``).

    Raises:
        MismatchError: names what was expected and what was found.
    """
    limits = limits or {}
    converted = _convert_type(value, hint)
    _check_limits(converted, limits)
    if limits.get("path"):
        return _checked_path(converted)
    return converted


def _convert_type(value: object, hint: Any) -> Any:
    members = without_none(hint)
    if isinstance(value, Mapping):
        raise MismatchError("holds a nested block, but all keys stand on one level; move its keys to the left margin")
    if value is None:
        return _convert_empty(hint, members)
    if accepts_none(hint) and str not in members and str(value).strip().lower() in ("none", "null"):
        return None
    for member in members:
        found, converted = _convert_member(value, member)
        if found:
            return converted
    raise MismatchError(f"must be {type_words(hint)}, not {shown(value)}{_advice(value, members)}")


def _convert_empty(hint: Any, members: tuple[Any, ...]) -> Any:
    if accepts_none(hint):
        return None
    if any(get_origin(member) is tuple for member in members):
        return ()
    raise MismatchError(f"is empty; give {type_words(hint)}, or remove the line to take the default")


def _convert_member(value: object, member: Any) -> tuple[bool, Any]:
    if get_origin(member) is Literal:
        return _as_choice(value, get_args(member))
    if get_origin(member) is tuple:
        return _as_numbers(value) if get_args(member)[0] is float else _as_names(value)
    if member is bool:
        return _as_bool(value)
    if member is int or member is float:
        return _as_number(value, whole=member is int)
    if isinstance(value, str):
        return True, value
    return isinstance(value, int | float) and not isinstance(value, bool), str(value)


def _as_choice(value: object, choices: tuple[str, ...]) -> tuple[bool, Any]:
    # YAML 1.1 reads a bare `no` as false, and `eval_strategy: no` is how everybody writes it.
    text = "no" if value is False else str(value).strip()
    for choice in choices:
        if text.lower() == choice.lower():
            return True, choice
    return False, None


def _as_names(value: object) -> tuple[bool, Any]:
    if isinstance(value, str):
        return True, tuple(name.strip() for name in value.split(",") if name.strip())
    if isinstance(value, list | tuple):
        if any(isinstance(name, bool) or not isinstance(name, str | int | float) for name in value):
            return False, None
        return True, tuple(str(name).strip() for name in value)
    return isinstance(value, int | float) and not isinstance(value, bool), (str(value),)


def _as_numbers(value: object) -> tuple[bool, Any]:
    found, items = _as_names(value)
    if not found:
        return False, None
    numbers = [_as_number(item, whole=False) for item in items]
    return all(is_number for is_number, _ in numbers), tuple(number for _, number in numbers)


def _as_bool(value: object) -> tuple[bool, Any]:
    if isinstance(value, bool):
        return True, value
    text = str(value).strip().lower()
    return text in _TRUE + _FALSE, text in _TRUE


def _as_number(value: object, *, whole: bool) -> tuple[bool, Any]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False, None
    try:
        number = int(value) if isinstance(value, str) and whole else float(value)
    except ValueError:
        try:
            number = float(value)
        except ValueError:
            return False, None
    except OverflowError:
        return False, None
    if not math.isfinite(number):
        return False, None
    if not whole:
        return True, float(number)
    return float(number).is_integer(), int(number)


def _advice(value: object, members: tuple[Any, ...]) -> str:
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    near = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    if isinstance(value, bool) and str in members:
        return "; YAML reads yes, no, on, off, true and false as truth values, so put the text in quotes"
    return ""


def _check_limits(value: object, limits: Mapping[str, Any]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if "minimum" in limits and value < limits["minimum"]:
        raise MismatchError(f"must be at least {limits['minimum']}, not {value}")
    if "above" in limits and value <= limits["above"]:
        raise MismatchError(f"must be above {limits['above']}, not {value}")
    if "maximum" in limits and value > limits["maximum"]:
        raise MismatchError(f"must be at most {limits['maximum']}, not {value}")
    if "below" in limits and value >= limits["below"]:
        raise MismatchError(f"must be below {limits['below']}, not {value}")


def _checked_path(value: object) -> Any:
    if isinstance(value, tuple):
        return tuple(_checked_path(item) for item in value)
    if not isinstance(value, str):
        return value
    # In double quotes YAML reads the \n of "E:\new" as a line break and the \P of "E:\Py" as a paragraph separator.
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
        raise MismatchError(
            f"holds a control character: {value!r}; write a Windows path without quotes or in single ones, since "
            "double quotes give backslashes a meaning"
        )
    return os.path.expanduser(value) if value.startswith("~") else value
