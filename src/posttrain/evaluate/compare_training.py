"""Training runs side by side: their figures and curves. Single runs hold no items, so nothing is tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.evaluate.run_folders import RunFolder

_CURVES = (
    ("loss", "training loss"),
    ("eval_loss", "held-out loss"),
    ("eval_accuracy", "held-out pairs ranked correctly"),
    ("reward_mean", "reward"),
    ("eval_reward", "held-out reward"),
    ("kl", "KL from the reference"),
    ("entropy", "entropy"),
    ("response_length", "response length"),
)
_PANELS = 6
_FIRST = ("total_steps", "epoch", "train_loss")
_LAST = ("train_runtime", "train_samples_per_second", "train_tokens_per_second", "peak_memory_bytes")

NOTE = (
    "figures of single training runs: they keep no items, so no difference is tested. Evaluate the runs on the same "
    "rows with `posttrain eval`, and compare those folders"
)


@dataclass(frozen=True, kw_only=True)
class TrainingComparison:
    """Runs, their figures by name, and their curves: title -> run -> (steps, values)."""

    runs: tuple[str, ...]
    figures: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, Mapping[str, tuple[list[float], list[float]]]]

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"runs": list(self.runs), "figures": {k: dict(v) for k, v in self.figures.items()}, "notes": [NOTE]}


def compare_training(folders: Sequence[RunFolder]) -> TrainingComparison:
    """What the runs logged and ended with; a run that lacks a figure has none in its column."""
    names = dict.fromkeys(name for folder in folders for name, value in folder.results.items() if _is_number(value))
    wanted = [name for name in _FIRST if name in names]
    wanted += [name for name in names if name.startswith("eval_") and not _is_rate(name)]
    wanted += [name for name in _LAST if name in names]
    figures = {
        name: {folder.name: float(folder.results[name]) for folder in folders if _is_number(folder.results.get(name))}
        for name in wanted
    }
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for key, title in _CURVES:
        by_run = {folder.name: points for folder in folders if (points := _points(folder, key))[0]}
        if by_run and len(curves) < _PANELS:
            curves[title] = by_run
    return TrainingComparison(runs=tuple(folder.name for folder in folders), figures=figures, curves=curves)


def _points(folder: RunFolder, key: str) -> tuple[list[float], list[float]]:
    points = {
        float(line["current_steps"]): float(line[key])
        for line in folder.log
        if _is_number(line.get("current_steps")) and _is_number(line.get(key))
    }
    return sorted(points), [points[step] for step in sorted(points)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_rate(name: str) -> bool:
    return name.endswith(("_runtime", "_per_second", "_before")) or name == "eval_num_rows"
