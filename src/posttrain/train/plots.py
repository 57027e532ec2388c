"""Pictures of a run, drawn from its log: one file per curve, whichever curves the log holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.train.metrics import TRAINER_LOG
from posttrain.train.run_directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, LINE = "#1f2933", "#64707d", "#e4e8ec", "#2563a8"
_FEW_POINTS = 12


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture, ``training_{name}.png``.

    Attributes:
        keys: where the log holds the curve; the first one found is drawn.
        title, unit: what the reader sees above the picture and beside it.
        spread: key of a standard deviation, drawn as a band.
        noisy: whether a smoothed curve helps the eye.
    """

    name: str
    keys: tuple[str, ...]
    title: str
    unit: str
    spread: str = ""
    noisy: bool = True


CHARTS = (
    Chart(name="loss", keys=("loss",), title="Training loss", unit="loss"),
    Chart(name="eval_loss", keys=("eval_loss",), title="Held-out loss", unit="loss"),
    Chart(name="accuracy", keys=("accuracy",), title="Pairs ranked correctly in training", unit="share of pairs"),
    Chart(
        name="eval_accuracy", keys=("eval_accuracy",), title="Held-out pairs ranked correctly", unit="share of pairs"
    ),
    Chart(
        name="reward", keys=("reward_mean", "reward"), title="Reward per completion", unit="reward", spread="reward_std"
    ),
    Chart(name="eval_reward", keys=("eval_reward", "eval_reward_mean"), title="Held-out reward", unit="reward"),
    Chart(name="eval_judge_reward", keys=("eval_judge_reward",), title="Held-out reward of the judge", unit="reward"),
    Chart(name="kl", keys=("kl",), title="KL divergence from the reference", unit="nats"),
    Chart(name="entropy", keys=("entropy",), title="Entropy of the policy", unit="nats per token"),
    Chart(name="clip_fraction", keys=("clip_fraction",), title="Clipped probability ratios", unit="share of tokens"),
    Chart(name="value_loss", keys=("value_loss",), title="Value loss", unit="loss"),
    Chart(
        name="explained_variance",
        keys=("explained_variance",),
        title="Variance of returns explained by the critic",
        unit="share",
    ),
    Chart(name="response_length", keys=("response_length",), title="Response length", unit="tokens"),
    Chart(name="repetition", keys=("repetition",), title="Text that answers repeat", unit="share of text"),
    Chart(name="grad_norm", keys=("grad_norm",), title="Gradient norm before clipping", unit="norm"),
    Chart(name="lr", keys=("lr",), title="Learning rate", unit="learning rate", noisy=False),
)


def plot_run(run_directory: RunDirectory) -> list[Path]:
    """Draw ``training_loss.png``, ``training_reward.png``, ... from ``trainer_log.jsonl``.

    Returns:
        The pictures written; a curve that the log does not hold makes none.
    """
    rows = run_directory.read_jsonl(TRAINER_LOG)
    written = []
    for chart in CHARTS:
        points = _points(chart, rows)
        if points:
            path = run_directory.path / f"training_{chart.name}.png"
            _draw(chart, points, path)
            written.append(path)
    return written


def smoothed(values: Sequence[float]) -> list[float]:
    """A centred running average over about a tenth of the curve, so that it does not lag behind it.

        s_t = Σ_i β^|t−i| x_i / Σ_i β^|t−i|,  β = 1 − 1 / max(2, n / 20)

    Args:
        values: n of them.

    Returns:
        n values; a constant stays itself.
    """
    decay = 1 - 1 / max(2.0, len(values) / 20)
    before = _decayed_sums(values, decay)
    after = _decayed_sums(values[::-1], decay)[::-1]
    weights = _decayed_sums([1.0] * len(values), decay)
    # Both sums hold the point itself, so it is taken off once.
    pairs = zip(before, after, weights, weights[::-1], values, strict=True)
    return [(left + right - value) / (w + v - 1.0) for left, right, w, v, value in pairs]


def _decayed_sums(values: Sequence[float], decay: float) -> list[float]:
    return list(accumulate(values, lambda total, value: total * decay + value))


@dataclass(frozen=True)
class _Point:
    step: int
    value: float
    spread: float | None


def _points(chart: Chart, rows: Sequence[dict[str, Any]]) -> list[_Point]:
    """The curve in the order of its steps; of two lines about one step the later counts."""
    for key in chart.keys:
        points = {
            int(row["current_steps"]): _Point(int(row["current_steps"]), row[key], _number(row.get(chart.spread)))
            for row in rows
            if "current_steps" in row and _number(row.get(key)) is not None
        }
        if points:
            return [points[step] for step in sorted(points)]
    return []


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _draw(chart: Chart, points: Sequence[_Point], path: Path) -> None:
    # The figure is made without pyplot: no display, no global state, no backend to choose.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), dpi=144, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    dress(axes, title=chart.title, along="optimizer step", unit=chart.unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    steps, values = [point.step for point in points], [point.value for point in points]
    if len(points) < _FEW_POINTS or not chart.noisy:
        axes.plot(steps, values, color=LINE, linewidth=1.8, marker="o", markersize=4.5 if chart.noisy else 0)
    else:
        axes.plot(steps, values, color=LINE, linewidth=1.0, alpha=0.35, label="each logged step")
        axes.plot(steps, smoothed(values), color=LINE, linewidth=2.0, label="smoothed")
    banded = [point for point in points if point.spread is not None]
    if banded:
        low = [point.value - (point.spread or 0.0) for point in banded]
        high = [point.value + (point.spread or 0.0) for point in banded]
        label = "± one standard deviation"
        axes.fill_between([point.step for point in banded], low, high, color=LINE, alpha=0.10, lw=0, label=label)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    canvas.print_figure(str(path))


def dress(axes: Axes, *, title: str, along: str, unit: str) -> None:
    """Title, names of both axes, and the looks that all pictures of a run share."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(along, color=MUTED)
    axes.set_ylabel(unit, color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
