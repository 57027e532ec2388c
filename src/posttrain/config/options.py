"""How a configuration key is declared: a dataclass field that carries its meaning and its limits."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field with the sentence that documents it and the limits that the loader checks.

    Args:
        default: without one the key is required.
        help: one sentence for the configuration reference.
        minimum: smallest value allowed. above: value that must be exceeded.
        maximum: largest value allowed. below: value that must not be reached.
        path: the text is a path or a name; a leading ``~`` is expanded and nothing else is touched.
    """
    limits = {"minimum": minimum, "above": above, "maximum": maximum, "below": below}
    metadata = {"help": help, "path": path, **{k: v for k, v in limits.items() if v is not None}}
    return dataclasses.field(default=default, metadata=metadata)


def without_none(hint: Any) -> tuple[Any, ...]:
    """The members of a type hint, ``None`` left out; a plain hint is its own only member."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(member for member in get_args(hint) if member is not type(None))
    return (hint,)


def accepts_none(hint: Any) -> bool:
    """True where ``null`` is a value of this type."""
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def type_hints(group: type) -> dict[str, Any]:
    """The evaluated type of every field of a configuration dataclass, in order."""
    hints = typing.get_type_hints(group)
    return {field.name: hints[field.name] for field in dataclasses.fields(group)}


def type_words(hint: Any) -> str:
    """The type as a user reads it, for error messages: ``a whole number``, ``one of a, b, c``."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    parts = []
    for member in without_none(hint):
        if get_origin(member) is Literal:
            parts.append("one of " + ", ".join(str(choice) for choice in get_args(member)))
        elif get_origin(member) is tuple:
            what = "numbers" if get_args(member)[0] is float else "names"
            parts.append(f"{what}, separated by commas or as a list")
        else:
            parts.append(words[member])
    return " or ".join(parts)


def type_label(hint: Any) -> str:
    """The type in the fewest characters, for the reference table: ``int``, ``linear / cosine``, ``list, null``."""
    words = {int: "int", float: "float", bool: "bool", str: "text"}
    parts = []
    for member in without_none(hint):
        if get_origin(member) is Literal:
            parts.append(" / ".join(str(choice) for choice in get_args(member)))
        elif get_origin(member) is tuple:
            parts.append("list")
        else:
            parts.append(words[member])
    return ", ".join(parts + (["null"] if accepts_none(hint) else []))
