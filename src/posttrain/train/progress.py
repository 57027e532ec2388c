"""What the user sees while a run goes on: a bar on a terminal, now and then a line in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from tqdm import tqdm

from posttrain.train.metrics import duration

_LABELS = {
    "reward_mean": "reward",
    "kl": "KL",
    "tokens_per_second": "tokens/s",
    "x_of_limit": "x of limit",
    "learning_rate": "lr",
    "eval_loss": "eval loss",
}
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_REFRESH_SECONDS = 0.1


class Progress:
    """The steps of one run, the latest values of its metrics, and the phase that it is in.

    Args:
        total: steps of the whole run.
        description: what is running, such as ``ppo``.
        disable: show nothing but notes.
        initial: steps done before this process began.
        interval: seconds between two lines where the output is no terminal; 0 prints each change.
        stream: where to write; standard error when None.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        total: int,
        description: str,
        disable: bool = False,
        *,
        initial: int = 0,
        interval: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.description = description
        self.step = initial
        self._initial = initial
        self._disable = disable
        self._interval = interval
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._started = clock()
        self._shown = -float("inf")
        self._values: dict[str, float] = {}
        self._phase = ""
        self._pending = False
        self._bar: tqdm | None = None
        if not disable and self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=initial,
                desc=description,
                file=self._stream,
                dynamic_ncols=True,
                bar_format=_BAR,
                leave=True,
            )

    def update(self, steps: int = 1, **values: float | None) -> None:
        """Go on by ``steps``, showing the latest ``values`` (``loss``, ``reward``, ``kl``, ``tokens_per_second``)."""
        self.step += steps
        self._values |= {name: float(value) for name, value in values.items() if value is not None}
        self._phase = ""
        if self._bar is not None:
            self._bar.update(steps)
        self._show(at_once=self.step >= self.total)

    def phase(self, name: str, done: int = 0, total: int = 0) -> None:
        """Say what the current step is doing, as in ``generate 12/32``; gone at the next ``update``."""
        self._phase = f"{name} {done}/{total}" if total else name
        self._show()

    def note(self, message: str) -> None:
        """Print a line of its own without breaking the bar; shown even when the progress is disabled."""
        if self._bar is not None:
            tqdm.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Show the last state, once."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(), refresh=True)
            self._bar.close()
        elif self._pending:
            self._show(at_once=True)
        self._disable = True
        self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _show(self, at_once: bool = False) -> None:
        if self._disable:
            return
        now = self._clock()
        interval = _REFRESH_SECONDS if self._bar is not None else self._interval
        self._pending = not at_once and now - self._shown < interval
        if self._pending:
            return
        self._shown = now
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(), refresh=True)
        else:
            print(self._line(now - self._started), file=self._stream, flush=True)

    def _status(self) -> str:
        shown = [f"{_LABELS.get(name, name)} {_short(value)}" for name, value in self._values.items()]
        return ", ".join([*shown, *([self._phase] if self._phase else [])])

    def _line(self, elapsed: float) -> str:
        share = 100 * self.step / self.total if self.total else 100.0
        parts = [f"{self.description} {self.step}/{self.total} ({share:.0f} %)"]
        if status := self._status():
            parts.append(status)
        parts.append(f"{duration(elapsed)} gone")
        done = self.step - self._initial
        if done > 0 and self.step < self.total:
            parts.append(f"{duration(elapsed / done * (self.total - self.step))} left")
        return " · ".join(parts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
