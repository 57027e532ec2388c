"""The picture of a reward model: whether it is as often right as it claims, and what length has to do with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import RunError
from posttrain.evaluate.drawing import COLOURS, MUTED, dress, figure_of, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARK = 160.0


def plot_preference(variants: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy over confidence, and accuracy by how much longer the chosen answer is, with the intervals of both.

    Args:
        variants: name -> metrics of task reward. path: the picture to write.

    Raises:
        RunError: it cannot be written.
    """
    figure = figure_of(10.0, 4.2)
    calibration, lengths = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    dress(calibration, "Right as often as it claims?", "share of pairs ranked correctly")
    dress(lengths, "Right whatever the length?", "share of pairs ranked correctly")
    calibration.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1.0, linestyle="--", label="calibrated")
    calibration.set_xlabel("confidence, σ(|score difference|); large points are many pairs", color=MUTED, fontsize=8)
    lengths.axhline(0.5, color=MUTED, linewidth=1.0, linestyle="--")
    names = list(dict.fromkeys(part for metrics in variants.values() for part in metrics["by_length"]))
    for number, (name, metrics) in enumerate(variants.items()):
        colour = COLOURS[number % len(COLOURS)]
        bins = list(metrics["by_confidence"].values())
        _points(
            calibration, [part["mean_confidence"] for part in bins], bins, colour, f"{plain(name)}, {_error(metrics)}"
        )
        parts = [
            (place, metrics["by_length"][part]) for place, part in enumerate(names) if part in metrics["by_length"]
        ]
        shift = 0.12 * (number - (len(variants) - 1) / 2)
        _points(lengths, [place + shift for place, _ in parts], [part for _, part in parts], colour, plain(name))
    lengths.set_xticks(range(len(names)), [part.replace(" by ", "\nby ") for part in names], fontsize=8)
    lengths.set_xlim(-0.6, len(names) - 0.4)
    for axes in (calibration, lengths):
        axes.set_ylim(-0.03, 1.03)
    calibration.legend(frameon=False, fontsize=8, labelcolor=MUTED, loc="lower right")
    try:
        save(figure, path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def _points(axes: Axes, places: list[float], parts: list[Mapping[str, Any]], colour: str, label: str) -> None:
    """A point for each part, as large as its share of the pairs, with the interval of its accuracy."""
    total = sum(part["num_pairs"] for part in parts)
    for place, part in zip(places, parts, strict=True):
        low, high = part["accuracy_interval"]
        spread = [[max(part["accuracy"] - low, 0.0)], [max(high - part["accuracy"], 0.0)]]
        axes.errorbar(place, part["accuracy"], yerr=spread, color=colour, elinewidth=1.1, capsize=2.5, alpha=0.8)
    sizes = [12 + _MARK * part["num_pairs"] / total for part in parts]
    axes.scatter(places, [part["accuracy"] for part in parts], s=sizes, color=colour, zorder=3, label=label)


def _error(metrics: Mapping[str, Any]) -> str:
    return f"ECE {metrics['calibration_error']:.3f}, {metrics['num_pairs']} pairs"
