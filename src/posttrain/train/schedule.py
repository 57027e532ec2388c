"""Counts of steps and the learning rate at each of them: pure arithmetic, no optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.config.schedules import SCHEDULE_OPTIONS
from posttrain.errors import UserError

# What transformers uses when an inverse square root schedule has no warm-up to take its time scale from.
_INVERSE_SQRT_TIMESCALE = 10_000


@dataclass(frozen=True, kw_only=True)
class StepsPlan:
    """How long a run is, in optimizer steps.

    Attributes:
        total: steps of the whole run.
        per_epoch: steps of one pass over the rows; the last one of a pass may be smaller than the others.
        warmup: steps over which the learning rate rises from 0.
    """

    total: int
    per_epoch: int
    warmup: int

    def epoch(self, step: int) -> float:
        """The share of epochs done after ``step`` optimizer steps, 1.5 in the middle of the second epoch."""
        return step / self.per_epoch


def steps_plan(
    num_rows: int,
    batch_size: int,
    accumulation: int,
    epochs: float,
    max_steps: int = -1,
    *,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.0,
) -> StepsPlan:
    """The number of optimizer steps that these rows make.

        per_epoch = ⌈⌈num_rows / batch_size⌉ / accumulation⌉,  total = ⌈epochs · per_epoch⌉

    Args:
        num_rows: rows of the training set, at least 1.
        batch_size: rows of one micro-batch over all processes.
        accumulation: micro-batches of one optimizer step.
        epochs: passes over the rows; a fraction is allowed.
        max_steps: when positive, the total whatever ``epochs`` says.
        warmup_steps: when positive, the warm-up whatever ``warmup_ratio`` says.
        warmup_ratio: share of the total, rounded up.

    Raises:
        UserError: if there is no row, or a size, the epochs or the steps make a run of no length.
    """
    if num_rows < 1:
        raise UserError("the training set is empty: no row was left after reading, filtering and splitting the dataset")
    for name, value in (("per_device_train_batch_size", batch_size), ("gradient_accumulation_steps", accumulation)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    if max_steps <= 0 and not epochs > 0:
        raise UserError(f"num_train_epochs must be positive (got {epochs:g}) unless max_steps is set")
    per_epoch = math.ceil(math.ceil(num_rows / batch_size) / accumulation)
    total = max_steps if max_steps > 0 else math.ceil(epochs * per_epoch)
    warmup = warmup_steps if warmup_steps > 0 else math.ceil(total * warmup_ratio)
    return StepsPlan(total=total, per_epoch=per_epoch, warmup=warmup)


def learning_rate_factor(
    step: int,
    *,
    total: int,
    warmup: int,
    kind: str,
    learning_rate: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> float:
    """What the learning rate is multiplied by at one optimizer step; the values are those of transformers.

        warm-up, s < w:         s / w                      (not for ``constant``)
        with p = (s − w) / (n − w):
        linear:                 1 − p
        polynomial:             (1 − p)^power (1 − m) + m,  m = lr_end / learning rate
        cosine:                 (1 + cos(2π c p)) / 2,  c = num_cycles, one half
        cosine_with_min_lr:     that, (1 − m) times, plus m = min_lr / learning rate, or min_lr_rate
        cosine_with_restarts:   (1 + cos(π (c p mod 1))) / 2,  c = num_cycles, one
        inverse_sqrt:           √(τ / (s + τ − w)),  τ = timescale, w unless given, or 10000 without warm-up
        warmup_stable_decay:    1, then down to min_lr_ratio over the last num_decay_steps (a tenth of n unless given)

    Args:
        step: s, the optimizer steps taken before this one; the first step of a run is 0.
        total: n. warmup: w.
        kind: one of ``SCHEDULES``.
        learning_rate: the highest one, for options that are learning rates themselves.
        options: ``lr_scheduler_kwargs``, names and defaults as in transformers.

    Returns:
        A factor in [0, 1].

    Raises:
        UserError: if ``kind`` is not a schedule.
    """
    if kind not in SCHEDULES:
        raise UserError(f"lr_scheduler_type: unknown schedule {kind!r}; use one of {', '.join(SCHEDULES)}")
    chosen = {**SCHEDULE_OPTIONS[kind], **(options or {}), "learning_rate": learning_rate}
    if kind == "warmup_stable_decay":
        return _warmup_stable_decay(step, total, warmup, chosen)
    if kind != "constant" and step < warmup:
        return step / warmup
    return SCHEDULES[kind](step, total, warmup, chosen)


Options = Mapping[str, Any]


def _progress(step: int, total: int, warmup: int) -> float:
    return (step - warmup) / max(1, total - warmup)


def _linear(step: int, total: int, warmup: int, options: Options) -> float:
    return max(0.0, (total - step) / max(1, total - warmup))


def _polynomial(step: int, total: int, warmup: int, options: Options) -> float:
    least = options["lr_end"] / (options["learning_rate"] or 1.0)
    left = max(0.0, 1 - _progress(step, total, warmup))
    return float((1 - least) * left ** options["power"] + least)


def _cosine(step: int, total: int, warmup: int, options: Options) -> float:
    turns = 2 * options["num_cycles"] * _progress(step, total, warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * turns)))


def _cosine_with_min_lr(step: int, total: int, warmup: int, options: Options) -> float:
    least = options["min_lr_rate"]
    if least is None:
        least = options["min_lr"] / (options["learning_rate"] or 1.0)
    return float((1 - least) * _cosine(step, total, warmup, options) + least)


def _cosine_with_restarts(step: int, total: int, warmup: int, options: Options) -> float:
    progress = _progress(step, total, warmup)
    return 0.0 if progress >= 1 else 0.5 * (1.0 + math.cos(math.pi * (options["num_cycles"] * progress % 1.0)))


def _constant(step: int, total: int, warmup: int, options: Options) -> float:
    return 1.0


def _inverse_sqrt(step: int, total: int, warmup: int, options: Options) -> float:
    timescale = options["timescale"] or warmup or _INVERSE_SQRT_TIMESCALE
    return math.sqrt(timescale / (step + timescale - warmup))


def _warmup_stable_decay(step: int, total: int, warmup: int, options: Options) -> float:
    decay = math.ceil(total / 10) if options["num_decay_steps"] is None else options["num_decay_steps"]
    stable = options["num_stable_steps"]
    if stable is None:
        stable = total - warmup - decay
    least = options["min_lr_ratio"]
    if step < warmup:
        return float(_rise(options["warmup_type"], step / warmup, 0.5) * (1 - least) + least)
    if step < warmup + stable:
        return 1.0
    if step >= warmup + stable + decay:
        return float(least)
    down = (step - warmup - stable) / max(1, decay)
    if options["decay_type"] == "1-sqrt":
        height = 1 - math.sqrt(down)
    else:
        height = 1 - _rise(options["decay_type"], down, options["num_cycles"])
    return float(max(0.0, height * (1 - least) + least))


def _rise(shape: str, progress: float, cycles: float) -> float:
    """From 0 to 1 along a line, half a cosine, or 1 − √(1 − progress)."""
    if shape == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * cycles * 2 * progress))
    return progress if shape == "linear" else 1 - math.sqrt(1 - progress)


SCHEDULES: dict[str, Callable[[int, int, int, Options], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "polynomial": _polynomial,
    "constant": _constant,
    "constant_with_warmup": _constant,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
}
