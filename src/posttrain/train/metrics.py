"""What a run measures: averages between two log lines, the log itself, and the stop when a loss is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self

from posttrain.errors import RunError
from posttrain.train.alarms import Alarm
from posttrain.train.run_directory import RunDirectory
from posttrain.train.trackers import Trackers

TRAINER_LOG = "trainer_log.jsonl"
_RENAMED = {"learning_rate": "lr"}


class Meter:
    """Weighted averages of named values, collected from one log line to the next."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, float], weight: float = 1.0) -> None:
        """Count ``values`` with this weight; names may differ from call to call."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value) * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def take(self) -> dict[str, float]:
        """The averages since the last call, in the order in which their names came up; starts anew."""
        means = {name: total / self._weights[name] for name, total in self._sums.items() if self._weights[name]}
        self._sums, self._weights = {}, {}
        return means

    def state(self) -> dict[str, list[float]]:
        """Name -> [sum, weight], for a checkpoint between two log lines."""
        return {name: [total, self._weights[name]] for name, total in self._sums.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Continue from ``state``."""
        self._sums = {name: pair[0] for name, pair in state.items()}
        self._weights = {name: pair[1] for name, pair in state.items()}


class MetricsLog:
    """``trainer_log.jsonl``, one JSON object per logging step, and the same numbers for the trackers.

    Args:
        run_directory: where it is written.
        total_steps: optimizer steps of the whole run.
        start_step: optimizer steps done before this process began (a resumed run).
        trackers: where the numbers are sent besides; None for nowhere.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        run_directory: RunDirectory,
        *,
        total_steps: int,
        start_step: int = 0,
        trackers: Trackers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_directory = run_directory
        self.total_steps = total_steps
        self.trackers = trackers or Trackers(())
        self._start_step = start_step
        self._clock = clock
        self._started = clock()

    def log(self, step: int, values: Mapping[str, float], epoch: float) -> None:
        """Write one line; ``learning_rate`` is called ``lr`` there, as LLaMA-Factory's readers expect.

        Args:
            step: optimizer steps done.
            values: what was measured; evaluation results start with ``eval_``.
            epoch: passes over the training set done.

        Raises:
            RunError: as ``check``, before anything is written.
        """
        self.check(step, values)
        named = {_RENAMED.get(name, name): float(value) for name, value in values.items()}
        elapsed = self._clock() - self._started
        done = step - self._start_step
        remaining = elapsed / done * (self.total_steps - step) if done > 0 else 0.0
        line = {
            "current_steps": step,
            "total_steps": self.total_steps,
            **named,
            "epoch": round(epoch, 4),
            "percentage": round(100 * step / self.total_steps, 2) if self.total_steps else 100.0,
            "elapsed_time": duration(elapsed),
            "remaining_time": duration(remaining),
        }
        self.run_directory.append_jsonl(TRAINER_LOG, line)
        self.trackers.log(
            step,
            {
                f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": value
                for name, value in named.items()
            },
        )

    def alarm(self, alarm: Alarm, epoch: float, **more: Any) -> None:
        """Write an alarm on a line of its own, under the key ``alarm``.

        Args:
            alarm: see ``Alarm``. epoch: as ``log``. more: further fields of the line.
        """
        line = {
            "current_steps": alarm.step,
            "total_steps": self.total_steps,
            "alarm": alarm.name,
            "metric": alarm.metric,
            "value": alarm.value,
            "threshold": alarm.threshold,
            "message": alarm.sentence,
            **more,
            "epoch": round(epoch, 4),
        }
        self.run_directory.append_jsonl(TRAINER_LOG, line)
        self.trackers.log(alarm.step, {f"alarm/{alarm.name}": alarm.value})

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Stop a run that has left the numbers: call it before the optimizer's result is saved anywhere.

        Raises:
            RunError: if a loss or a gradient norm is NaN or infinite; names it, the step and the way back.
        """
        for name, value in values.items():
            if _is_vital(name) and not math.isfinite(value):
                raise RunError(
                    f"{name} is {float(value)} at step {step} of {self.total_steps}. Use a lower learning_rate, a "
                    f"smaller max_grad_norm or float32. {self.run_directory.way_back()}"
                )

    def close(self) -> None:
        """Finish what the trackers hold."""
        self.trackers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in ``1:02:03``."""
    return str(timedelta(seconds=int(max(seconds, 0.0))))


def _is_vital(name: str) -> bool:
    return name in ("loss", "grad_norm") or name.endswith("_loss")
