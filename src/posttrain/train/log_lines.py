"""Lines of the logs: one JSON object each, with the step that it was written after."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

_STEP_KEYS = ("current_steps", "step")


def parsed(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The objects of the lines that are whole."""
    return [row for row in map(_parsed, lines) if row is not None]


def until(rows: Iterable[Mapping[str, Any]], step: int, *, evaluated: bool) -> list[Mapping[str, Any]]:
    """The rows written up to ``step``; without the evaluation of ``step`` itself unless ``evaluated``."""
    kept = [row for row in rows if _step(row) <= step]
    return kept if evaluated else [row for row in kept if _step(row) < step or not _is_evaluation(row)]


def _step(row: Mapping[str, Any]) -> float:
    return next((row[key] for key in _STEP_KEYS if key in row), -math.inf)


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    """Whether it is one, or an alarm that one raised."""
    return any(name.startswith("eval_") for name in (*row, str(row.get("metric", ""))))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
