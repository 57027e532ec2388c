"""Rewards of held-out prompts before a run and after it, prompt by prompt: as numbers, and as a picture of both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.train.plots import GRID, INK, LINE, MUTED, dress
from posttrain.train.run_directory import RunDirectory

COMPLETIONS = "eval_completions.jsonl"
NAME = "reward_distribution"
_BEFORE = "#9aa5b1"
_BINS = 24
_NORMAL_95 = 1.959964


def write_distribution(directory: RunDirectory, *, plots: bool) -> list[Path]:
    """``reward_distribution.json`` and, if asked for, ``.png``, from the first and the last evaluation of a run.

    Returns:
        What was written; nothing where the held-out prompts were not answered twice.
    """
    rows = directory.read_jsonl(COMPLETIONS)
    steps = sorted({int(row["step"]) for row in rows})
    if len(steps) < 2:
        return []
    first, last = (_of_step(rows, step) for step in (steps[0], steps[-1]))
    shared = sorted(first.keys() & last.keys())
    before, after = ([side[number] for number in shared] for side in (first, last))
    if not shared:
        return []
    found = {
        "before": {"step": steps[0], **summary(before)},
        "after": {"step": steps[-1], **summary(after)},
        "difference": difference(before, after),
        "rewards": {"before": before, "after": after},
    }
    written = [directory.write_json(f"{NAME}.json", found)]
    if plots:
        path = directory.path / f"{NAME}.png"
        _draw(before, after, (steps[0], steps[-1]), path)
        written.append(path)
    return written


def summary(rewards: Sequence[float]) -> dict[str, Any]:
    """Mean, deviation, and the points that a quarter, half and three quarters of the rewards are below."""
    ordered = sorted(rewards)
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    return {
        "num_prompts": len(ordered),
        "mean": statistics.fmean(ordered),
        "std": statistics.pstdev(ordered),
        "min": ordered[0],
        "quartiles": quartiles,
        "max": ordered[-1],
    }


def difference(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """How much more the same prompts earn afterwards: the mean with its 95 % interval, and for how many it is more."""
    gains = [b - a for a, b in zip(before, after, strict=True)]
    mean = statistics.fmean(gains)
    error = _NORMAL_95 * statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return {
        "mean": mean,
        "interval_95": [mean - error, mean + error],
        "num_better": sum(gain > 0 for gain in gains),
        "num_equal": sum(gain == 0 for gain in gains),
        "num_worse": sum(gain < 0 for gain in gains),
    }


def _of_step(rows: Sequence[Mapping[str, Any]], step: int) -> dict[int, float]:
    """Prompt -> its reward; of two evaluations at one step the later counts, as where the best weights were loaded."""
    found = {int(row["number"]): row["eval_reward"] for row in rows if row["step"] == step}
    return {number: float(reward) for number, reward in found.items() if reward is not None}


def _draw(before: Sequence[float], after: Sequence[float], steps: tuple[int, int], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=144, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    dress(axes, title="Reward of held-out prompts", along="reward", unit="prompts")
    low, high = min(*before, *after), max(*before, *after)
    margin = (high - low or 1.0) / 50
    edges = [low - margin + (high - low + 2 * margin) * place / _BINS for place in range(_BINS + 1)]
    for rewards, colour, step in ((before, _BEFORE, steps[0]), (after, LINE, steps[1])):
        mean = statistics.fmean(rewards)
        label = f"{'before' if step == steps[0] else 'after'} (step {step}), mean {mean:.3g}"
        axes.hist(rewards, bins=edges, color=colour, alpha=0.55, label=label)
        axes.axvline(mean, color=colour if colour == LINE else MUTED, linewidth=1.6, linestyle="--")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    canvas.print_figure(str(path))
