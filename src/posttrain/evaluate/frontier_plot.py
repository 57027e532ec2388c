"""The picture of a run's way: reward over KL, a point for each checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import RunError
from posttrain.evaluate.drawing import GRID, INK, LINE, MUTED, SECOND, dress, figure_of, save


def plot_frontier(points: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw reward over KL with the intervals of both, in the order of the checkpoints.

    Args:
        points: name -> metrics with ``step``, ``kl``, ``reward`` and their intervals. path: the picture to write.

    Raises:
        RunError: it cannot be written.
    """
    known = [
        metrics for metrics in points.values() if metrics.get("kl") is not None and metrics.get("reward") is not None
    ]
    figure = figure_of(7.2, 4.8)
    axes = figure.add_subplot()
    dress(axes, "Reward over KL from the reference", "reward per completion")
    axes.set_xlabel("KL from the reference, nats per completion", color=MUTED)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.plot([m["kl"] for m in known], [m["reward"] for m in known], color=LINE, linewidth=1.2, alpha=0.5, zorder=2)
    for number, metrics in enumerate(known):
        x, y = metrics["kl"], metrics["reward"]
        spread = [
            [[max(value - low, 0.0)], [max(high - value, 0.0)]]
            for value, (low, high) in ((x, metrics["kl_interval"]), (y, metrics["reward_interval"]))
        ]
        color = SECOND if number == 0 and not metrics["step"] else LINE
        axes.errorbar(
            x,
            y,
            xerr=spread[0],
            yerr=spread[1],
            fmt="o",
            color=color,
            ecolor=color,
            elinewidth=1.0,
            capsize=2.5,
            ms=5.5,
        )
        label = f"step {metrics['step']}" if metrics["step"] else "reference"
        axes.annotate(label, (x, y), xytext=(6, 6), textcoords="offset points", fontsize=8, color=INK)
    axes.text(
        0.995, 0.01, "bars: intervals over prompts", transform=axes.transAxes, ha="right", fontsize=8, color=MUTED
    )
    try:
        save(figure, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
