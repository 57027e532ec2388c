"""Which fields of a run's files are readings of a clock or of the machine: all that two equal runs may differ in."""

from __future__ import annotations

from typing import Any

_NAMES = ("elapsed_time", "remaining_time", "seconds", "computed_seconds", "peak_memory_bytes", "created")
_ENDINGS = ("_per_second", "runtime", "x_of_limit")


def is_clock(name: str) -> bool:
    """Whether a field of this name is one; ``seconds_generate`` and its like are."""
    return name in _NAMES or name.startswith("seconds_") or name.endswith(_ENDINGS)


def timeless(value: Any) -> Any:
    """A value as JSON holds it, without such fields at any depth."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if not is_clock(name)}
    return [timeless(item) for item in value] if isinstance(value, list) else value
