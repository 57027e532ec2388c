"""One training run from its configuration to everything that its run directory holds."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import RunConfig
from posttrain.data.datasets import load_dataset
from posttrain.errors import UserError
from posttrain.models.assemble import offline_assembly, online_assembly
from posttrain.models.fetch import resolve_model
from posttrain.models.load import load_tokenizer
from posttrain.train.machine import peak_memory_bytes
from posttrain.train.metrics import MetricsLog
from posttrain.train.monitor import Monitor
from posttrain.train.parts import Parts, make_engine, make_plan
from posttrain.train.plots import plot_run
from posttrain.train.progress import Progress
from posttrain.train.run_directory import RunDirectory
from posttrain.train.schedule import StepsPlan
from posttrain.train.stages import make_stage


def train(config: RunConfig, *, notify: Callable[[str], None] = lambda sentence: None) -> dict[str, Any]:
    """Run one stage.

    Args:
        config: loaded with ``command="train"``.
        notify: receives sentences for the user.

    Returns:
        What ``all_results.json`` holds.

    Raises:
        UserError: bad configuration, data or folders, before anything is trained.
        RunError: a run that failed; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    settings = config.train
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "started as one of several processes (WORLD_SIZE is set), but a run is one process for now: start it "
            "without torchrun"
        )
    for sentence in config.warnings:
        notify(sentence)
    model, reward = config.model, config.ppo.reward_model
    reads = [model.model_name_or_path, *model.adapter_name_or_path, *([reward] if reward else [])]
    place: dict[str, Any] = {
        "overwrite": settings.overwrite_output_dir,
        "resume": settings.resume_from_checkpoint,
        "reads": reads,
    }
    RunDirectory.check(settings.output_dir, **place)
    folder = resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir)
    tokenizer = load_tokenizer(folder, use_fast=model.use_fast_tokenizer, trust_remote_code=model.trust_remote_code)
    splits = load_dataset(
        config.data,
        tokenizer,
        config.method.stage,
        seed=settings.seed,
        margin_column=config.reward_model.margin_column,
    )
    notify(splits.report.sentence())
    plan = make_plan(config, len(splits.train))
    finished = _finished(Path(settings.output_dir).expanduser(), plan, settings.resume_from_checkpoint)
    if finished is not None:
        notify(f"{settings.output_dir} already holds this run, finished: nothing to do")
        return finished
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        assembly = online_assembly(config) if config.method.stage == "ppo" else offline_assembly(config)
    if splits.template is not None:
        tokenizer.chat_template = splits.template.chat_template
        assembly = assembly.under_template(splits.template.fingerprint, allow_mismatch=config.ppo.allow_mismatch)
    for sentence in (*assembly.notes, *(str(w.message) for w in caught if "cannot run packed" in str(w.message))):
        notify(sentence)
    # only now: whatever was wrong with the configuration has been said, and an earlier run may be removed
    directory = RunDirectory.create(settings.output_dir, **place)
    if directory.notice:
        notify(directory.notice)
    engine = make_engine(config, assembly.roles, plan)
    return _run(Parts(config, directory, tokenizer, splits, plan, assembly, engine))


def _finished(folder: Path, plan: StepsPlan, resume: bool | str | None) -> dict[str, Any] | None:
    """The results of a run that came to its end in ``folder``, where the user asks to resume it; else None."""
    directory = RunDirectory(folder)
    if not resume or (directory.finished_steps or 0) < plan.total:
        return None
    results: dict[str, Any] = directory.read_json("all_results.json")
    return results


def _run(parts: Parts) -> dict[str, Any]:
    """Resume or start, loop, and write the results."""
    config, directory, settings = parts.config, parts.directory, parts.config.train
    checkpoint = directory.resume_checkpoint(settings.resume_from_checkpoint)
    if checkpoint is not None:
        parts.engine.resume(checkpoint)
    start = parts.steps_done
    directory.truncate_log(start)
    directory.write_text("config.yaml", yaml.safe_dump(config.to_flat(), allow_unicode=True, sort_keys=False))
    tensorboard = "tensorboard" in settings.report_to
    began = time.perf_counter()
    with (
        MetricsLog(directory, tensorboard=tensorboard, total_steps=parts.plan.total, start_step=start) as log,
        Progress(parts.plan.total, config.method.stage, settings.disable_tqdm, initial=start) as progress,
    ):
        stage = make_stage(parts, progress)
        monitor = Monitor(
            settings,
            directory,
            log,
            progress,
            steps_per_epoch=parts.plan.per_epoch,
            save=parts.save,
            evaluate=stage.evaluate,
            default_metric=stage.default_metric,
        )
        if checkpoint is not None:
            monitor.resume(checkpoint)
        with monitor.interruptible():
            before = monitor.evaluate(0) if stage.measures_before and start == 0 else {}
            train_loss = stage.fit(monitor)
            final = monitor.evaluate(parts.steps_done)
            if settings.load_best_model_at_end and monitor.best.step not in (None, parts.steps_done):
                parts.engine.load_weights(directory.path / f"checkpoint-{monitor.best.step}")
                final = dict(stage.evaluate()) if stage.evaluate else {}
    results = {**_train_results(parts, train_loss, time.perf_counter() - began, start), **_first(before)}
    return _write_results(parts, results, final)


def _train_results(parts: Parts, train_loss: float, seconds: float, start: int) -> dict[str, Any]:
    """``train_results.json`` under the names that users of transformers know."""
    done = parts.steps_done - start
    return {
        "epoch": parts.steps_done / parts.plan.per_epoch,
        "train_loss": train_loss,
        "train_runtime": seconds,
        "train_samples_per_second": done * parts.rows_per_step / seconds,
        "train_steps_per_second": done / seconds,
        "train_tokens": parts.engine.trained_tokens,
        "train_tokens_per_second": parts.engine.trained_tokens / max(parts.engine.computed_seconds, 1e-9),
        "peak_memory_bytes": peak_memory_bytes(),
        "total_steps": parts.plan.total,
        "stopped_at_step": parts.steps_done,
    }


def _first(before: Mapping[str, float]) -> dict[str, float]:
    """The evaluation before training, as ``eval_loss_before`` and so on."""
    keep = ("eval_loss", "eval_perplexity", "eval_reward", "eval_accuracy")
    return {f"{name}_before": before[name] for name in keep if name in before}


def _write_results(parts: Parts, results: dict[str, Any], evaluation: Mapping[str, float]) -> dict[str, Any]:
    """Save the model, then the numbers: the numbers mark a finished run."""
    directory = parts.directory
    parts.assembly.save(directory.path, parts.tokenizer)
    epoch = {"epoch": results["epoch"]}
    if parts.config.train.plot_loss:
        plot_run(directory)
    if evaluation:
        directory.write_json("eval_results.json", {**epoch, **evaluation})
    directory.write_json("train_results.json", results)
    everything = {**results, **evaluation}
    directory.write_json("all_results.json", everything)
    return everything
