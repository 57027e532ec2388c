"""How the pictures of evaluations look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, LINE, SECOND = "#1f2933", "#64707d", "#e4e8ec", "#2563a8", "#c2571a"
COLOURS = (LINE, SECOND, "#2f855a", "#7b4fa3", "#b7791f", "#4a5568")


def figure_of(width: float, height: float) -> Figure:
    """An empty figure of this many inches."""
    # The figure is made without pyplot: no display, no global state, no backend to choose.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=144, layout="constrained")


def dress(axes: Axes, title: str, unit: str = "") -> None:
    """Title, unit of the y axis, and quiet lines."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
    axes.set_ylabel(unit, color=MUTED)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def save(figure: Figure, path: Path) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(str(path), format="png")


def plain(name: str) -> str:
    """A name with the characters that matplotlib's own font has; ``$`` would begin a formula."""
    return "".join(character if character.isascii() and character != "$" else "?" for character in name)
