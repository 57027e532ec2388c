"""What a source of reward said, checked: one finite number for each completion, or what it said instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.config.own_code import said
from posttrain.errors import RewardError
from posttrain.types import RolloutBatch

OnError = Literal["stop", "zero"]


class Strict:
    """Turns what a source said into rewards; keeps count of the completions that it could not score.

    Attributes:
        source: what it is called in messages, such as "the reward my.py:f".
        num_zeros: completions that counted 0 so far because they could not be scored.
    """

    def __init__(
        self, source: str, *, on_error: OnError = "stop", notify: Callable[[str], None] = lambda sentence: None
    ) -> None:
        """Begin.

        Args:
            source: see above.
            on_error: "stop" refuses a completion without a number; "zero" lets it count 0, as long as others have one.
            notify: told of completions that count 0: of the first, then each time their number has doubled.
        """
        self.source, self.on_error, self._notify = source, on_error, notify
        self.num_zeros, self._told = 0, 0

    def listed(self, answer: object, count: int) -> list[Any]:
        """What came back as a list with one item for each completion.

        Args:
            answer: a list, a tuple, or an array or tensor of [count] or [count, 1].
            count: completions that were asked about.

        Raises:
            RewardError: it is none of these, or has another length.
        """
        if hasattr(answer, "detach"):
            answer = answer.detach().cpu()
        values = answer.tolist() if hasattr(answer, "tolist") else answer
        if not isinstance(values, list | tuple):
            raise RewardError(f"{self.source} gave {_shown(answer)}, not a list of {count} numbers.")
        if len(values) != count:
            raise RewardError(
                f"{self.source} gave {len(values)} number{'s' * (len(values) != 1)} for {count} completions; it must "
                "give one for each, in their order."
            )
        return [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for value in values]

    def rewards(self, values: Sequence[object], batch: RolloutBatch) -> Tensor:
        """[B] float32 on the batch's device.

        Args:
            values: B numbers; what is none (an exception too: what happened to this row) fails.
            batch: the rows.

        Raises:
            RewardError: a row failed and ``on_error`` is "stop", or all of them did.
        """
        found: list[float] = []
        failed: list[tuple[int, str]] = []
        for row, value in enumerate(values):
            number, reason = _number(value)
            found.append(number)
            if reason is not None:
                failed.append((row, reason))
        if failed:
            self._failed(failed, batch)
        return torch.tensor(found, dtype=torch.float32, device=batch.input_ids.device)

    def _failed(self, failed: Sequence[tuple[int, str]], batch: RolloutBatch) -> None:
        row, reason = failed[0]
        size = len(batch)
        completion = batch.completions[row] if row < len(batch.completions) else ""
        where = f"completion {row + 1} of {size} ({_shown(completion)})"
        if self.on_error == "stop":
            raise RewardError(
                f"{self.source} {reason} for {where}; each completion needs one finite number. "
                "`reward_on_error: zero` lets such completions count 0."
            )
        if len(failed) == size:
            raise RewardError(f"{self.source} scored none of {size} completions; it {reason} for {where}.")
        self.num_zeros += len(failed)
        if self.num_zeros >= 2 * self._told:
            self._told = self.num_zeros
            self._notify(f"{self.source} {reason} for {where}; {self.num_zeros} so far counted 0")


def _number(value: object) -> tuple[float, str | None]:
    """The number, and what is wrong with it."""
    if isinstance(value, BaseException):
        return 0.0, said(value)
    if not isinstance(value, Real) and hasattr(value, "item"):
        try:
            value = value.item()
        except (RuntimeError, ValueError):
            return 0.0, f"gave {_shown(value)}"
    if not isinstance(value, Real):
        return 0.0, f"gave {_shown(value)}"
    number = float(value)
    if not math.isfinite(number) or abs(number) > torch.finfo(torch.float32).max:
        return 0.0, f"gave {number}"
    return number, None


def _shown(value: object) -> str:
    """A value in at most sixty characters; what is no text, number or None with its type."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if value is None or isinstance(value, str | int | float) else f"{type(value).__name__} {text}"
