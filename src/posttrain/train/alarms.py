"""Alarms of a run that samples its own text: signs that the policy pleases its reward and nobody else.

Nothing here looks at a model: what is judged is the stream of numbers that the log holds anyway.
"""

from __future__ import annotations

import json
import math
import operator
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.config import AlarmConfig
from posttrain.errors import UserError

FILE = "alarms.json"
HELD_OUT = ("eval_judge_reward", "eval_reward")
"""Held-out measures that must not fall while the reward in training rises; their spread is called ``..._std``."""
_REWARD, _SPREAD = "reward_mean", "reward_std"
_COLUMNS = ("response_length", "repetition", "entropy", "ended_share")
_TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One that has been raised.

    Attributes:
        name: the key that sets its threshold is ``alarm_<name>``.
        step: when. metric: column of the log that it is about. value, threshold: the two that were compared.
        sentence: what was seen, its likely cause, and what helps.
    """

    name: str
    step: int
    metric: str
    value: float
    threshold: float
    sentence: str


@dataclass(frozen=True, kw_only=True)
class _Sign:
    """What an alarm goes by.

    Attributes:
        metric: see ``Alarm``.
        value: (mean over the first iterations, mean over the latest) -> the value; None says nothing.
        beyond: (value, threshold) -> whether it is too much.
        sentence: the value -> what was seen; cause: why, and what helps.
    """

    metric: str
    value: Callable[[float, float], float | None]
    beyond: Callable[[float, float], bool] = operator.gt
    sentence: Callable[[float], str]
    cause: str


def _latest(first: float, latest: float) -> float:
    return latest


def _ratio(first: float, latest: float) -> float | None:
    return latest / first if first > _TINY else None


def _changed(value: float) -> str:
    how = f"{value:.1f} times as long as" if value >= 1 else f"only {value:.2f} of the length"
    return f"answers are {how} in the first iterations"


@dataclass(frozen=True, kw_only=True)
class _Peak:
    """The best evaluation so far of a held-out measure: when, how much, its deviation, and the reward in training."""

    step: int
    held: float
    spread: float
    reward: float | None


_SIGNS: Mapping[str, _Sign] = {
    "kl": _Sign(
        metric="kl",
        value=_latest,
        sentence=lambda value: f"the policy is {value:.2f} nats per token away from its reference",
        cause="The penalty does not hold it: raise kl_coef, or lower learning_rate.",
    ),
    "length_drift": _Sign(
        metric="response_length",
        value=_ratio,
        beyond=lambda value, threshold: not 1 / threshold <= value <= threshold,
        sentence=_changed,
        cause="The reward may pay for length, or fear it: read completions.jsonl, and reward what the length stands in "
        "for.",
    ),
    "repetition": _Sign(
        metric="repetition",
        value=_latest,
        sentence=lambda value: f"{value:.0%} of what answers say they have said before, letter for letter",
        cause="The reward likes a phrase, or the policy has come loose: raise kl_coef, or add repetition:4 to "
        "reward_funcs.",
    ),
    "entropy": _Sign(
        metric="entropy",
        value=_ratio,
        beyond=operator.lt,
        sentence=lambda value: f"the entropy is down to {value:.0%} of that of the first iterations",
        cause="The policy has settled on one answer and explores no more: lower learning_rate, raise entropy_coef, "
        "clip_range_high or temperature.",
    ),
    "no_eos": _Sign(
        metric="ended_share",
        value=lambda first, latest: 1 - latest,
        sentence=lambda value: f"{value:.0%} of answers do not end but are cut at max_new_tokens",
        cause="The reward does not ask for an end, or max_new_tokens is too small: reward answers that end, or raise "
        "it.",
    ),
}
GAP = "reward_gap"
NAMES = (*_SIGNS, GAP)


class Alarms:
    """Watches one run. What it knows is a function of the statistics it was told, and goes into checkpoints.

    Attributes:
        config: the thresholds. first_steps: name -> step at which it was raised first.
    """

    def __init__(self, config: AlarmConfig) -> None:
        """``config``: see ``AlarmConfig``."""
        self.config = config
        self.first_steps: dict[str, int] = {}
        self._sounding: dict[str, float] = {}
        self._first: dict[str, list[float]] = {}
        self._latest: dict[str, deque[float]] = {}
        self._peaks: dict[str, _Peak] = {}

    def after_step(self, step: int, stats: Mapping[str, float]) -> list[Alarm]:
        """The alarms that an iteration raises.

        One that sounds already is not raised again before it has been quiet. Nothing is judged before ``alarm_window``
        iterations are known.

        Args:
            step: the iteration, from 1. stats: those of the log; an alarm whose columns are missing is silent.
        """
        self._take(stats)
        found: list[Alarm] = []
        for name, sign in _SIGNS.items():
            value = self._value(sign)
            if value is not None:
                found += self._judge(name, step, sign.metric, value, sign.sentence(value), sign.cause)
        return found

    def after_evaluation(self, step: int, stats: Mapping[str, float]) -> list[Alarm]:
        """The alarm that an evaluation raises, if the reward in training rises while a held-out one falls.

            gap = min((r − r*) / σ_r, (h* − h) / σ_h)

        with r the mean reward of the latest iterations, h the held-out measure, σ their deviations, and * for the
        evaluation with the best h so far. Both must have moved by the threshold for an alarm.

        Args:
            step: see ``after_step``, 0 before training. stats: of the evaluation.
        """
        gaps = [(gap, metric) for metric in HELD_OUT if (gap := self._gap(step, metric, stats)) is not None]
        if not gaps:
            return []
        value, metric = max(gaps)
        since = self._peaks[metric].step
        seen = (
            f"since step {since} the reward in training has risen and {metric} has fallen, each by {value:.2f} of its "
            "standard deviations or more"
        )
        cause = (
            "The policy learns what the reward likes and others do not: read completions.jsonl, raise kl_coef, stop "
        )
        return self._judge(GAP, step, metric, value, seen, f"{cause}at step {since}, or mend the reward.")

    def standing(self) -> list[str]:
        """Names of those that sound, judged by the thresholds of now: a resumed run may have been given others."""
        return [name for name, value in self._sounding.items() if self._beyond(name, value)]

    def state(self) -> dict[str, Any]:
        """All that ``restore`` needs, as JSON can hold it."""
        return {
            "first_steps": dict(self.first_steps),
            "sounding": dict(self._sounding),
            "first": {metric: list(values) for metric, values in self._first.items()},
            "latest": {metric: list(values) for metric, values in self._latest.items()},
            "peaks": {metric: asdict(peak) for metric, peak in self._peaks.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``."""
        self.first_steps, self._sounding = dict(state["first_steps"]), dict(state["sounding"])
        self._first = {metric: list(values) for metric, values in state["first"].items()}
        window = self.config.alarm_window
        self._latest = {metric: deque(values, maxlen=window) for metric, values in state["latest"].items()}
        self._peaks = {metric: _Peak(**peak) for metric, peak in state["peaks"].items()}

    def save(self, folder: Path) -> None:
        """Write a checkpoint's file, where no monitor does."""
        (folder / FILE).write_text(json.dumps(self.state()), encoding="utf-8")

    def resume(self, folder: Path) -> None:
        """Continue from what ``save`` wrote; a checkpoint that knows of no alarms starts them anew.

        Raises:
            UserError: it cannot be read.
        """
        if not (folder / FILE).is_file():
            return
        try:
            self.restore(json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / FILE} cannot be read as part of a checkpoint ({error}).") from error

    def _take(self, stats: Mapping[str, float]) -> None:
        for metric, value in _watched(stats):
            first = self._first.setdefault(metric, [])
            if len(first) < self.config.alarm_window:
                first.append(value)
            self._latest.setdefault(metric, deque(maxlen=self.config.alarm_window)).append(value)

    def _mean(self, metric: str) -> float | None:
        """Over the latest iterations; None before there are enough of them."""
        latest = self._latest.get(metric, ())
        return fmean(latest) if len(latest) >= self.config.alarm_window else None

    def _value(self, sign: _Sign) -> float | None:
        latest = self._mean(sign.metric)
        return None if latest is None else sign.value(fmean(self._first[sign.metric]), latest)

    def _gap(self, step: int, metric: str, stats: Mapping[str, float]) -> float | None:
        """How far both have moved apart, 0 where this evaluation is the best so far; None where nothing can be said."""
        held, spread = stats.get(metric), stats.get(f"{metric}_std", 0.0)
        if held is None or not math.isfinite(held):
            return None
        reward, reward_spread = self._mean(_REWARD), self._mean(_SPREAD)
        peak = self._peaks.get(metric)
        if peak is None or held >= peak.held:
            self._peaks[metric] = _Peak(step=step, held=held, spread=spread, reward=reward)
            return 0.0
        if reward is None or reward_spread is None:
            return None
        before = fmean(self._first[_REWARD]) if peak.reward is None else peak.reward
        rise = (reward - before) / max(reward_spread, _TINY)
        fall = (peak.held - held) / max(math.hypot(spread, peak.spread) / math.sqrt(2), _TINY)
        return min(rise, fall)

    def _judge(self, name: str, step: int, metric: str, value: float, seen: str, cause: str) -> list[Alarm]:
        """The alarm, if it was quiet before and is not now."""
        if not self._beyond(name, value):
            self._sounding.pop(name, None)
            return []
        is_new = name not in self._sounding
        self._sounding[name] = value
        if not is_new:
            return []
        self.first_steps.setdefault(name, step)
        threshold = self._threshold(name)
        assert threshold is not None
        sentence = f"{seen} (alarm_{name}: {threshold:g}). {cause}"
        return [Alarm(name=name, step=step, metric=metric, value=value, threshold=threshold, sentence=sentence)]

    def _threshold(self, name: str) -> float | None:
        threshold: float | None = getattr(self.config, f"alarm_{name}")
        return threshold

    def _beyond(self, name: str, value: float) -> bool:
        threshold = self._threshold(name)
        beyond = _SIGNS[name].beyond if name in _SIGNS else operator.gt
        return threshold is not None and bool(beyond(value, threshold))


def _watched(stats: Mapping[str, float]) -> Iterable[tuple[str, float]]:
    """The columns that are watched; of KLs the one whose tails are tame, per token so that no limit goes by length."""
    columns = {name: stats.get(name) for name in (*_COLUMNS, _REWARD, _SPREAD)}
    kl, length = stats.get("kl_k1", stats.get("kl")), columns["response_length"]
    columns["kl"] = kl / length if kl is not None and length else None
    return [(name, float(value)) for name, value in columns.items() if value is not None and math.isfinite(value)]
