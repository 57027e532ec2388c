"""The report's pictures: accuracy of each model, losses of the offline stages, the course of PPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.config import is_online
from posttrain.pipeline.results import StageResults, called, sql_evaluation
from posttrain.train.plots import smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID, _LINE, _SECOND = "#1f2933", "#64707d", "#e4e8ec", "#2563a8", "#c2571a"
_FEW_POINTS = 12
_OFFLINE = {
    "pt": "Pretraining",
    "sft": "Fine-tuning",
    "rm": "Reward model",
    "dpo": "Preference optimisation",
    "kto": "KTO",
}
_ONLINE = (
    ("reward_mean", "eval_reward", "Reward per completion", "reward"),
    ("kl", "eval_kl", "KL from the reference", "nats per completion"),
    ("entropy", "", "Entropy of the policy", "nats per token"),
    ("response_length", "eval_response_length", "Response length", "tokens"),
)


def plot_report(stages: Sequence[StageResults], folder: Path) -> list[tuple[Path, str]]:
    """Write the pictures that these stages make.

    Returns:
        (path, what it shows) of each, in the order of the report.
    """
    written = []
    evaluation = sql_evaluation(stages)
    if evaluation is not None:
        path = folder / "report_accuracy.png"
        _plot_accuracy(evaluation.numbers, path)
        written.append((path, "Execution accuracy on held-out questions"))
    offline = [stage for stage in stages if stage.kind in _OFFLINE and stage.curve("loss")[0]]
    if offline:
        path = folder / "report_training.png"
        _plot_offline(offline, path)
        written.append((path, "Loss of the offline stages"))
    online = [stage for stage in stages if is_online(stage.kind) and stage.log]
    for stage in online:
        path = folder / ("report_ppo.png" if len(online) == 1 else f"report_{stage.name}.png")
        _plot_online(stage, path)
        written.append((path, f"The course of {stage.name}"))
    return written


def _plot_accuracy(numbers: Mapping[str, Any], path: Path) -> None:
    names = list(numbers["variants"])
    metrics = [numbers["variants"][name] for name in names]
    figure = _figure(max(4.8, 1.6 * len(names) + 1.6), 4.2)
    axes = figure.add_subplot()
    level = f"{100 * numbers.get('confidence', 0.95):g} %"
    _dress(axes, f"Execution accuracy on {metrics[0]['num_questions']} held-out questions", "share of questions, %")
    for place, found in enumerate(metrics):
        value = 100 * found["execution_accuracy"]
        low, high = (100 * bound for bound in found["execution_accuracy_interval"])
        # rounding must not give an error bar a negative length
        spread = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
        axes.bar(place, value, width=0.55, color=_LINE, alpha=0.85)
        axes.errorbar(place, value, yerr=spread, color=_INK, capsize=5, linewidth=1.4)
        axes.annotate(f"{value:.1f}", (place, high), xytext=(0, 5), textcoords="offset points", ha="center", color=_INK)
    axes.set_xticks(range(len(names)), [_plain(called(name)) for name in names])
    axes.set_xlabel(f"bars: {level} interval", color=_MUTED)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, min(112.0, 1.18 * max(100 * found["execution_accuracy_interval"][1] for found in metrics) + 2))
    _save(figure, path)


def _plot_offline(stages: Sequence[StageResults], path: Path) -> None:
    figure = _figure(max(4.8, 3.6 * len(stages)), 3.6)
    for number, stage in enumerate(stages, start=1):
        axes = figure.add_subplot(1, len(stages), number)
        _dress(axes, f"{_OFFLINE[stage.kind]} ({_plain(stage.name)})", "loss" if number == 1 else "")
        _curve(axes, *stage.curve("loss"), held_out=stage.curve("eval_loss"))
        axes.set_xlabel("optimizer step", color=_MUTED)
    _save(figure, path)


def _plot_online(stage: StageResults, path: Path) -> None:
    figure = _figure(9.0, 6.4)
    for number, (key, held_out, title, unit) in enumerate(_ONLINE, start=1):
        axes = figure.add_subplot(2, 2, number)
        _dress(axes, title, unit)
        steps, values = stage.curve(key)
        if key == "reward_mean":
            _band(axes, stage)
        _curve(axes, steps, values, held_out=stage.curve(held_out) if held_out else ([], []))
        axes.set_xlabel("iteration", color=_MUTED)
    _save(figure, path)


def _band(axes: Axes, stage: StageResults) -> None:
    """Mean ± one standard deviation over the completions of an iteration."""
    rows = [row for row in stage.log if all(isinstance(row.get(k), int | float) for k in ("reward_mean", "reward_std"))]
    steps = [row["current_steps"] for row in rows]
    low = [row["reward_mean"] - row["reward_std"] for row in rows]
    high = [row["reward_mean"] + row["reward_std"] for row in rows]
    axes.fill_between(steps, low, high, color=_LINE, alpha=0.10, lw=0, label="± one standard deviation")


def _curve(
    axes: Axes, steps: Sequence[float], values: Sequence[float], *, held_out: tuple[list[float], list[float]]
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(values) < _FEW_POINTS:
        axes.plot(steps, values, color=_LINE, linewidth=1.8, marker="o", markersize=4, label="training")
    else:
        axes.plot(steps, values, color=_LINE, linewidth=0.9, alpha=0.35)
        axes.plot(steps, smoothed(values), color=_LINE, linewidth=2.0, label="training, smoothed")
    if held_out[0]:
        axes.plot(*held_out, color=_SECOND, linewidth=1.4, marker="s", markersize=5, label="held out")
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=_MUTED)


def _figure(width: float, height: float) -> Figure:
    # The figure is made without pyplot: no display, no global state, no backend to choose.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _dress(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=8)
    axes.set_ylabel(unit, color=_MUTED)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_figure(str(path))


def _plain(name: str) -> str:
    """A name with the characters that matplotlib's own font has; ``$`` would begin a formula."""
    return "".join(character if character.isascii() and character != "$" else "?" for character in name)
