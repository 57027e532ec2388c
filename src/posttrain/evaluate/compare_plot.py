"""Pictures of comparisons: every figure of every system with its interval, or the curves of training runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import RunError
from posttrain.evaluate.compare import Comparison
from posttrain.evaluate.drawing import COLOURS, GRID, INK, LINE, MUTED, SECOND, dress, figure_of, plain, save

_COLUMNS = 3
_MARKERS = 40


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """A panel for each figure, a row for each system; a star where it differs from the first beyond chance.

    Raises:
        RunError: the picture cannot be written.
    """
    systems, measures = comparison.systems, comparison.measures
    columns = min(_COLUMNS, len(measures))
    rows = math.ceil(len(measures) / columns)
    figure = figure_of(max(6.0, 4.1 * columns), (1.15 + 0.34 * len(systems)) * rows + 0.55)
    figure.suptitle(
        f"{comparison.task}, {comparison.num_items} items, {100 * comparison.level:g} % intervals; "
        f"* differs from {plain(systems[0])} (Holm)",
        x=0.01,
        ha="left",
        fontsize=10,
        color=INK,
    )
    marked = {
        (each.measure.name, each.of)
        for each in comparison.differences
        if each.is_significant and each.minus == systems[0]
    }
    for number, measure in enumerate(measures):
        axes = figure.add_subplot(rows, columns, number + 1)
        dress(axes, measure.title)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        for place, system in enumerate(systems):
            found = comparison.figures[measure.name][system]
            if found.value is None:
                continue
            low = found.value if found.low is None else found.low
            high = found.value if found.high is None else found.high
            # rounding must not give an error bar a negative length
            spread = [[max(found.value - low, 0.0)], [max(high - found.value, 0.0)]]
            color = SECOND if place == 0 else LINE
            axes.errorbar(found.value, place, xerr=spread, fmt="o", color=color, capsize=3, elinewidth=1.3, ms=5)
            star = " *" if (measure.name, system) in marked else ""
            text = f"{found.value:.4g}{star}"
            axes.annotate(
                text, (found.value, place), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
            )
        shown = [plain(system) for system in systems] if number % columns == 0 else [""] * len(systems)
        axes.set_yticks(range(len(systems)), shown)
        axes.set_ylim(len(systems) - 0.5, -0.7)
        better = {"higher": ", higher is better", "lower": ", lower is better", "": ""}[measure.better]
        axes.set_xlabel(f"{measure.unit or measure.title}{better}", fontsize=8, color=MUTED)
    _write(figure, path)


def plot_curves(curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], path: Path) -> None:
    """A panel for each column of the logs, a line for each run.

    Args:
        curves: column -> run -> (steps, values). path: the picture to write.

    Raises:
        RunError: it cannot be written.
    """
    columns = min(2, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = figure_of(5.2 * columns + 0.4, 3.1 * rows)
    runs = list(dict.fromkeys(run for by_run in curves.values() for run in by_run))
    colours = {run: COLOURS[place % len(COLOURS)] for place, run in enumerate(runs)}
    for number, (title, by_run) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        dress(axes, title)
        axes.set_xlabel("step", color=MUTED, fontsize=8)
        for run, (steps, values) in by_run.items():
            marker = "o" if len(steps) < _MARKERS else ""
            axes.plot(steps, values, color=colours[run], linewidth=1.3, marker=marker, ms=2.5, label=plain(run))
        if number == 0:
            axes.legend(frameon=False, fontsize=8, labelcolor=MUTED)
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    try:
        save(figure, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
