"""A comparison as tables for a terminal, as Markdown, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import RunError
from posttrain.evaluate.bootstrap import Estimate
from posttrain.evaluate.compare import Comparison
from posttrain.evaluate.compare_plot import plot_comparison, plot_curves
from posttrain.evaluate.compare_training import NOTE, TrainingComparison
from posttrain.pipeline.tables import Table

STEM = "comparison"
PICTURE = f"{STEM}.png"


def tables_of(comparison: Comparison | TrainingComparison) -> list[tuple[str, Table]]:
    """(title, table): the figures, then the differences."""
    if isinstance(comparison, TrainingComparison):
        rows = [
            (name, *(_number(comparison.figures[name].get(run)) for run in comparison.runs))
            for name in comparison.figures
        ]
        return [("Training runs", Table(("", *comparison.runs), tuple(rows)))]
    figures = [
        (
            f"{measure.title}{_arrow(measure.better)}",
            *(_with_interval(comparison.figures[measure.name][system]) for system in comparison.systems),
        )
        for measure in comparison.measures
    ]
    differences = [
        (
            f"{each.measure.title}: {each.of} - {each.minus}",
            f"{each.difference.value:+.4g} [{each.difference.low:+.4g}, {each.difference.high:+.4g}]",
            _probability(each.difference.p),
            _probability(each.p_holm),
            _verdict(each.is_significant, each.better),
        )
        for each in comparison.differences
    ]
    level = f"{100 * comparison.level:g} %"
    return [
        (
            f"{comparison.task} on {comparison.num_items} items [{level} interval]",
            Table(("", *comparison.systems), tuple(figures)),
        ),
        (
            "Differences on the same items",
            Table(("", f"difference [{level}]", "p", "p (Holm)", "verdict"), tuple(differences)),
        ),
    ]


def sentences_of(comparison: Comparison | TrainingComparison) -> list[str]:
    """What a reader of the tables should know."""
    if isinstance(comparison, TrainingComparison):
        return [NOTE]
    count = len(comparison.differences)
    return [
        f"p: paired bootstrap over items ({comparison.num_resamples} resamples, seed {comparison.seed}), two-sided, "
        f"that there is no difference. p (Holm): corrected for {count} comparison{'s' if count != 1 else ''}, those of "
        f"this table; significant below {1 - comparison.level:.3g}.",
        *comparison.notes,
    ]


def write_comparison(comparison: Comparison | TrainingComparison, folder: Path) -> list[Path]:
    """Write ``comparison.md``, ``comparison.json`` and ``comparison.png`` into a folder; returns what was written.

    Raises:
        RunError: a file cannot be written.
    """
    written = [folder / PICTURE]
    if isinstance(comparison, Comparison):
        plot_comparison(comparison, written[0])
    elif comparison.curves:
        plot_curves(comparison.curves, written[0])
    else:
        written = []
    parts = ["# Comparison"]
    for title, table in tables_of(comparison):
        parts += [f"## {title}", table.markdown()]
    parts += [f"![The figures with their intervals]({PICTURE})"] if written else []
    parts += ["\n".join(f"- {sentence}" for sentence in sentences_of(comparison))]
    texts = {
        folder / f"{STEM}.md": "\n\n".join(parts) + "\n",
        folder / f"{STEM}.json": as_json(comparison) + "\n",
    }
    for path, text in texts.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
    return [*texts, *written]


def as_json(comparison: Comparison | TrainingComparison) -> str:
    """For programs."""
    return json.dumps(comparison.plain(), ensure_ascii=False, indent=2)


def _with_interval(found: Estimate) -> str:
    if found.value is None:
        return "-"
    bounds = [found.low, found.high]
    shown = ", ".join("-" if bound is None else _number(bound) for bound in bounds)
    return f"{_number(found.value)} [{shown}]"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    size = abs(value)
    places = 4 if size < 1 else 3 if size < 10 else 2 if size < 1000 else 0
    return f"{value:.{places}f}" if not size or size >= 1e-4 else f"{value:.2g}"


def _probability(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _arrow(better: str) -> str:
    return {"higher": " (higher is better)", "lower": " (lower is better)"}.get(better, "")


def _verdict(is_significant: bool, better: str) -> str:
    if not is_significant:
        return "not significant"
    return f"significant, {better} is better" if better else "significant"


def shown(comparison: Comparison | TrainingComparison) -> Sequence[str]:
    """The tables and sentences for a terminal."""
    return [
        *(f"{title}\n{table.terminal()}\n" for title, table in tables_of(comparison)),
        *sentences_of(comparison),
    ]
