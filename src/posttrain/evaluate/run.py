"""`posttrain eval`: one task on held-out rows, for one model or several variants of it."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig
from posttrain.errors import RunError, UserError
from posttrain.evaluate.bench import Bench, Found, Progress
from posttrain.evaluate.items import digest_of
from posttrain.evaluate.run_folders import PREDICTIONS, RESULTS
from posttrain.evaluate.tasks import TASKS

_HALVES = re.compile("[\\ud800-\\udfff]")


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
        ``eval_<name>`` too, differences of variants, seed, decoding, and ``eval_runtime`` with its rates.

    Raises:
        UserError: bad configuration, data or folders.
        RunError: the results cannot be written.
    """
    for sentence in config.warnings:
        notify(sentence)
    folder = _output_folder(config)
    task = config.evaluate.task or "loss"
    bench = Bench(config, notify, progress)
    found = TASKS[task](bench)
    results = _results(config, task, found, time.perf_counter() - bench.began)
    if folder is not None:
        _write(folder, results, found.records)
    return results


def _results(config: RunConfig, task: str, found: Found, seconds: float) -> dict[str, Any]:
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
        "seed": config.train.seed,
        "items": digest_of(sorted({str(record["id"]) for record in found.records})),
        "decoding": found.decoding and dict(found.decoding),
        "settings": dict(found.settings),
        "variants": {name: dict(metrics) for name, metrics in found.variants.items()},
        "differences": list(found.differences),
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


def _line(record: Mapping[str, Any]) -> str:
    """A record as JSON; half characters, which some programs write, are no UTF-8 and are escaped."""
    text = json.dumps(record, ensure_ascii=False)
    return json.dumps(record) if _HALVES.search(text) else text


def _write(folder: Path, results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Predictions, then the results: they mark a finished evaluation. Each whole or not at all."""
    texts = {
        PREDICTIONS: "".join(_line(record) + "\n" for record in records),
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
