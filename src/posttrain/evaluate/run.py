"""`posttrain eval`: one task on held-out rows, for one model or several variants of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.data.template import Template
from posttrain.errors import RunError, UserError
from posttrain.evaluate import sql_task
from posttrain.evaluate.completions import complete, sampling_params
from posttrain.evaluate.likelihood import measure_likelihood
from posttrain.evaluate.preference import measure_preference
from posttrain.evaluate.rows import holds_out, read_rows
from posttrain.evaluate.wardrobe import Wardrobe, load_wearing
from posttrain.models.lineage import check_template

RESULTS = "eval_results.json"
PREDICTIONS = "predictions.jsonl"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Variant -> metrics, what else belongs into the results, and one record per row."""

    variants: Mapping[str, Mapping[str, Any]]
    num_rows: int
    more: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()


def evaluate(
    config: RunConfig,
    notify: Callable[[str], None] = lambda sentence: None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure a model, or each of ``variants``, on the rows of ``eval_dataset``, else of ``dataset``.

    With ``val_size`` and no ``eval_dataset`` these are the rows that training with the same keys holds out.

    Args:
        config: loaded with ``command="eval"``.
        notify: receives sentences for the user.
        progress: told what is going on: what, done, in all.

    Returns:
        What ``eval_results.json`` holds: the task, ``variants`` (name -> metrics), for a single model its metrics as
        ``eval_<name>`` too, differences of neighbouring variants, and ``eval_runtime`` with its rates.

    Raises:
        UserError: bad configuration, data or folders.
        RunError: the results cannot be written.
    """
    for sentence in config.warnings:
        notify(sentence)
    folder = _output_folder(config)
    progress("load the model", 0, 0)
    wardrobe = load_wearing(config)
    for sentence in wardrobe.notes:
        notify(sentence)
    task = config.evaluate.task or "loss"
    rows, template, report = read_rows(config, wardrobe.tokenizer, _stage(config, task))
    if holds_out(config):
        size, seed = config.data.val_size, config.train.seed
        notify(f"measuring the rows that training keeps out with `val_size: {size:g}` and `seed: {seed}`")
    notify(report.sentence())
    for sentence in _template_notes(wardrobe, template):
        notify(sentence)
    began = time.perf_counter()
    found = _measure(config, task, wardrobe, rows, template, progress)
    seconds = time.perf_counter() - began
    results = _results(config, task, found, seconds)
    if folder is not None:
        _write(folder, results, found.records)
    return results


def _measure(
    config: RunConfig, task: str, wardrobe: Wardrobe, rows: Sequence[Any], template: Template | None, progress: Progress
) -> _Found:
    size, level = config.train.per_device_eval_batch_size, config.evaluate.confidence
    if task == "reward":
        metrics, scores = measure_preference(wardrobe, rows, batch_size=size, level=level, progress=progress)
        records = [
            {"index": i, "variant": name, "chosen_score": chosen, "rejected_score": rejected}
            for name, table in scores.items()
            for i, (chosen, rejected) in enumerate(table.tolist())
        ]
        return _Found(variants=metrics, num_rows=len(rows), records=records)
    if task == "sql":
        assert template is not None
        params = sampling_params(config, template)
        completed = complete(wardrobe, rows, params, num_slots=size, progress=progress)
        sql_metrics, differences, records = sql_task.score(config, rows, completed, progress)
        return _Found(variants=sql_metrics, num_rows=len(rows), more={"differences": differences}, records=records)
    likelihood = measure_likelihood(wardrobe, rows, batch_size=size, progress=progress)
    return _Found(variants=likelihood, num_rows=len(rows))


def _stage(config: RunConfig, task: str) -> str:
    """How the rows of a task are read; perplexity is of documents unless the configuration names a stage."""
    if task == "reward":
        return "dpo"  # of a ranking every pair
    if task == "sql":
        return "ppo"
    named = config.method.stage if "stage" in config.sources else None
    if named in ("pt", "sft"):
        return "pt" if named == "pt" else "sft"
    return "pt" if task == "perplexity" else "sft"


def _template_notes(wardrobe: Wardrobe, template: Template | None) -> list[str]:
    if template is None:
        return []
    notes: list[str] = []
    outfits = [*wardrobe.variants.items(), *([("reward_model", wardrobe.reward)] if wardrobe.reward else [])]
    for name, outfit in outfits:
        for link in outfit.links:
            lineage = link.files.lineage
            note = check_template(
                lineage,
                template.fingerprint,
                folder=link.folder,
                key=name,
                example=template.example,
                allow_mismatch=True,
            )
            notes += [note] if note else []
    return list(dict.fromkeys(notes))


def _results(config: RunConfig, task: str, found: _Found, seconds: float) -> dict[str, Any]:
    num_variants = max(len(found.variants), 1)
    samples = found.num_rows * num_variants
    steps = math.ceil(found.num_rows / config.train.per_device_eval_batch_size) * num_variants
    results: dict[str, Any] = {"task": task}
    if len(found.variants) == 1:
        (metrics,) = found.variants.values()
        results |= {f"eval_{name}": value for name, value in metrics.items() if isinstance(value, int | float)}
    seconds = max(seconds, 1e-9)
    return {
        **results,
        "eval_num_rows": found.num_rows,
        "eval_runtime": seconds,
        "eval_samples_per_second": samples / seconds,
        "eval_steps_per_second": steps / seconds,
        "confidence": config.evaluate.confidence,
        "variants": {name: dict(metrics) for name, metrics in found.variants.items()},
        **found.more,
    }


def _output_folder(config: RunConfig) -> Path | None:
    """``output_dir``, made and tried out; None where the configuration names none.

    Raises:
        UserError: the results could not be written there, which is better said before the evaluation than after it.
    """
    if not config.train.output_dir:
        return None
    folder = Path(config.train.output_dir).expanduser()
    partial = _partial(folder, RESULTS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text("", encoding="utf-8")
        partial.unlink()
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written to: {error.strerror or error}") from error
    for name in (RESULTS, PREDICTIONS):
        if (folder / name).is_dir():
            raise UserError(f"output_dir {folder} holds a folder called {name}, where the results go; name another")
    return folder


def _partial(folder: Path, name: str) -> Path:
    return folder / f".tmp-{name}"


def _write(folder: Path, results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Predictions, then the results: they mark a finished evaluation. Each whole or not at all."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    texts = {
        **({PREDICTIONS: lines} if records else {}),
        RESULTS: json.dumps(results, ensure_ascii=False, indent=2) + "\n",
    }
    for name, text in texts.items():
        partial = _partial(folder, name)
        try:
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(folder / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunError(f"{folder / name} cannot be written: {error.strerror or error}") from error
