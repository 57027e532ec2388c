"""Counts of steps and the learning rate at each of them: pure arithmetic, no optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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


def learning_rate_factor(step: int, *, total: int, warmup: int, kind: str) -> float:
    """What the learning rate is multiplied by at one optimizer step; the values are those of transformers.

        warm-up, s < w:   s / w                      (not for ``constant``)
        linear:           (n − s) / (n − w)
        cosine:           (1 + cos(π (s − w) / (n − w))) / 2
        inverse_sqrt:     √(τ / (s + τ − w)),  τ = w, or 10000 without warm-up

    Args:
        step: s, the optimizer steps taken before this one; the first step of a run is 0.
        total: n. warmup: w.
        kind: one of ``SCHEDULES``.

    Returns:
        A factor in [0, 1].

    Raises:
        UserError: if ``kind`` is not a schedule.
    """
    if kind not in SCHEDULES:
        raise UserError(f"lr_scheduler_type: unknown schedule {kind!r}; use one of {', '.join(SCHEDULES)}")
    if kind != "constant" and step < warmup:
        return step / warmup
    return SCHEDULES[kind](step, total, warmup)


def _linear(step: int, total: int, warmup: int) -> float:
    return max(0.0, (total - step) / max(1, total - warmup))


def _cosine(step: int, total: int, warmup: int) -> float:
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _constant(step: int, total: int, warmup: int) -> float:
    return 1.0


def _inverse_sqrt(step: int, total: int, warmup: int) -> float:
    timescale = warmup or _INVERSE_SQRT_TIMESCALE
    return math.sqrt(timescale / (step + timescale - warmup))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "constant_with_warmup": _constant,
    "inverse_sqrt": _inverse_sqrt,
}
