"""lm-evaluation-harness as a task: its benchmarks ask our models through its own interface. The package is optional."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.evaluate.bench import Bench, Found
from posttrain.evaluate.harness_model import HarnessAnswers
from posttrain.evaluate.items import numbered
from posttrain.evaluate.measured import measures_of

_MISSING = (
    'task lm_eval needs lm-evaluation-harness, which is not installed: pip install "posttrain[lm-eval]" (the package '
    "is called "
    "lm_eval)"
)
_DIGITS = 12


def lm_eval(bench: Bench) -> Found:
    """What lm-evaluation-harness measures with its own tasks, for every variant."""
    harness, settings = _module("lm_eval"), bench.config.evaluate
    manager = _manager(settings.lm_eval_include, settings.lm_eval_tasks)
    wardrobe = bench.wardrobe
    model_class = type("PosttrainModel", (HarnessAnswers, _module("lm_eval.api.model").TemplateLM), {})
    variants: dict[str, dict[str, Any]] = {}
    records: list[dict[str, Any]] = []
    versions: Mapping[str, Any] = {}
    for name, outfit in wardrobe.variants.items():
        bench.progress(f"lm_eval {name}", 0, 0)
        model = model_class(wardrobe, outfit.wears, bench.config, bench.progress)
        found = _evaluated(harness, manager, model, bench.config)
        versions = found.get("versions", {})
        own = _records(name, found.get("samples", {}))
        figures = bench.figures(measures_of("lm_eval", own), own)
        variants[name] = {**_figures(found["results"], bench.level, figures), "num_samples": len(own)}
        records += own
    return Found(
        variants=variants,
        num_rows=len(records) // max(len(variants), 1),
        records=records,
        settings={
            "lm_eval": importlib.metadata.version("lm_eval"),
            "task_versions": {name: str(version) for name, version in versions.items()},
            "num_fewshot": settings.lm_eval_num_fewshot,
            "chat_template": settings.lm_eval_chat_template,
        },
    )


def _evaluated(harness: Any, manager: Any, model: Any, config: RunConfig) -> Mapping[str, Any]:
    """The harness's own results, with samples.

    Raises:
        UserError: the harness cannot load the data of a task.
    """
    settings, seed = config.evaluate, config.train.seed
    try:
        found: Mapping[str, Any] = harness.simple_evaluate(
            model=model,
            tasks=list(settings.lm_eval_tasks),
            task_manager=manager,
            num_fewshot=settings.lm_eval_num_fewshot,
            limit=config.data.max_samples,
            apply_chat_template=settings.lm_eval_chat_template,
            bootstrap_iters=1000,
            log_samples=True,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (OSError, ConnectionError) as error:
        raise UserError(
            f"lm_eval_tasks: lm-evaluation-harness cannot load a task's data: {str(error).splitlines()[0]}. Its tasks "
            "fetch their data from the Hugging Face hub; fetch it once where there is a connection, or name tasks of "
            "your own in lm_eval_include"
        ) from error
    return found


def _manager(include: str | None, tasks: Sequence[str]) -> Any:
    """What knows the tasks; the thousands that come with the harness are looked through only where they are needed.

    Raises:
        UserError: a task is not known.
    """
    make = _module("lm_eval.tasks").TaskManager
    if include:
        if not Path(include).expanduser().is_dir():
            raise UserError(f"lm_eval_include: there is no folder {include}")
        own = make(include_path=include, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    manager = make(include_path=include)
    known = set(manager.all_tasks)
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise UserError(
            f"lm_eval_tasks: lm-evaluation-harness knows no task {unknown[0]!r} ({len(known)} are known; `lm-eval ls "
            "tasks` lists them); for tasks of your own name their folder in lm_eval_include"
        )
    return manager


def _records(variant: str, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A record for each sample of each task and filter, named by what was asked and what is right."""
    listed = [(task, sample) for task in sorted(samples) for sample in samples[task]]
    names = numbered(
        "-".join((task, str(sample.get("filter", "none")), _hash(sample, "prompt_hash"), _hash(sample, "target_hash")))
        for task, sample in listed
    )
    found = []
    for index, (name, (task, sample)) in enumerate(zip(names, listed, strict=True)):
        kind = sample.get("filter", "none")
        metrics = {
            _metric(metric, kind): float(sample[metric])
            for metric in sample.get("metrics", ())
            if isinstance(sample.get(metric), int | float)
        }
        told = {"id": name, "index": index, "variant": variant, "task": task, "metrics": metrics}
        found.append({**told, "target": str(sample.get("target")), "response": _plain(sample.get("filtered_resps"))})
    return found


def _figures(
    results: Mapping[str, Mapping[str, Any]], level: float, own: Mapping[str, Any]
) -> dict[str, float | list[float]]:
    """The harness's figures as ``task/metric``; their intervals from our bootstrap, else from its standard errors."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    found: dict[str, Any] = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = f"{task}/{_metric(metric, kind)}"
            found[name] = float(value)
            error = metrics.get(f"{metric}_stderr,{kind}")
            if f"{name}_interval" in own:
                found[f"{name}_interval"] = own[f"{name}_interval"]
            elif isinstance(error, int | float):
                found[f"{name}_interval"] = [value - z * error, value + z * error]
    return found


def _metric(metric: str, kind: str) -> str:
    return metric if kind == "none" else f"{metric} ({kind})"


def _hash(sample: Mapping[str, Any], key: str) -> str:
    return str(sample.get(key, ""))[:_DIGITS]


def _plain(value: Any) -> Any:
    """What JSON can hold."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] == "lm_eval":
            raise UserError(_MISSING) from None
        raise UserError(
            f"task lm_eval: lm-evaluation-harness needs {missing.name}: pip install {missing.name}"
        ) from None
