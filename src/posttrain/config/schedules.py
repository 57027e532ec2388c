"""Courses of the learning rate, and what ``lr_scheduler_kwargs`` may say of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SCHEDULE_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "linear": {},
    "cosine": {"num_cycles": 0.5},
    "cosine_with_restarts": {"num_cycles": 1},
    "cosine_with_min_lr": {"num_cycles": 0.5, "min_lr": None, "min_lr_rate": None},
    "polynomial": {"lr_end": 1e-7, "power": 1.0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": None},
    "warmup_stable_decay": {
        "num_decay_steps": None,
        "num_stable_steps": None,
        "warmup_type": "linear",
        "decay_type": "cosine",
        "min_lr_ratio": 0.0,
        "num_cycles": 0.5,
    },
}
"""Schedule -> its options with their defaults, as transformers has them."""

SHAPES = ("linear", "cosine", "1-sqrt")
"""What ``warmup_type`` and ``decay_type`` can be."""


def schedule_options(written: str | None) -> dict[str, Any]:
    """``lr_scheduler_kwargs`` as a mapping; {} where it is empty."""
    return dict(json.loads(written)) if written else {}


def options_problem(kind: str, options: Mapping[str, Any]) -> str | None:
    """What is wrong with the options of a schedule, as the end of a sentence; None where nothing is."""
    known = SCHEDULE_OPTIONS[kind]
    for name, value in options.items():
        if name not in known:
            takes = ", ".join(known) or "none"
            return f"has `{name}`, which lr_scheduler_type: {kind} does not take (it takes {takes})"
        if name in ("warmup_type", "decay_type"):
            if value not in SHAPES:
                return f"has `{name}: {value}`, which must be one of {', '.join(SHAPES)}"
        elif value is None and known[name] is not None:
            return f"has `{name}` without a value; leave it out to take {known[name]}"
        elif name in ("min_lr_rate", "min_lr_ratio") and isinstance(value, int | float) and value > 1:
            return f"has `{name}: {value}`, a share of learning_rate, which must be at most 1"
        elif value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            return f"has `{name}: {value}`, which must be a number, at least 0"
    if kind == "cosine_with_min_lr" and (options.get("min_lr") is None) == (options.get("min_lr_rate") is None):
        return "must give min_lr or min_lr_rate, one of them, for lr_scheduler_type: cosine_with_min_lr"
    return None
