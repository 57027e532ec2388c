"""One training run from its configuration to everything that its run directory holds."""

from __future__ import annotations

import os
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
from posttrain.train.disk import reason
from posttrain.train.failures import explained, reading
from posttrain.train.machine import peak_memory_bytes
from posttrain.train.metrics import TRAINER_LOG, MetricsLog
from posttrain.train.monitor import Monitor, Totals
from posttrain.train.parts import Parts, make_engine, make_plan
from posttrain.train.plots import plot_run
from posttrain.train.progress import Progress
from posttrain.train.run_directory import RunDirectory
from posttrain.train.schedule import StepsPlan
from posttrain.train.stages import Stage, make_stage


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
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint.
    """
    settings = config.train
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "started as one of several processes (WORLD_SIZE is set), but a run is one process for now: start it "
            "without torchrun"
        )
    for sentence in config.warnings:
        notify(sentence)
    model = config.model
    place: dict[str, Any] = {
        "overwrite": settings.overwrite_output_dir,
        "resume": settings.resume_from_checkpoint,
        "reads": _read_folders(config),
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
    return _run(Parts(config, directory, tokenizer, splits, plan, assembly, engine), notify)


def _read_folders(config: RunConfig) -> list[str]:
    """Models and adapters that the run loads."""
    model, reward = config.model, config.ppo.reward_model
    return [model.model_name_or_path, *model.adapter_name_or_path, *([reward] if reward else [])]


def _finished(folder: Path, plan: StepsPlan, resume: bool | str | None) -> dict[str, Any] | None:
    """The results of a run that came to its end in ``folder``, where the user asks to resume it; else None."""
    directory = RunDirectory(folder)
    if not resume or (directory.finished_steps or 0) < plan.total:
        return None
    results: dict[str, Any] = directory.read_json("all_results.json")
    return results


def _run(parts: Parts, notify: Callable[[str], None]) -> dict[str, Any]:
    """Resume or start, loop, and write the results."""
    config, directory, settings = parts.config, parts.directory, parts.config.train
    checkpoint = directory.resume_checkpoint(settings.resume_from_checkpoint)
    if checkpoint is not None:
        with reading(checkpoint, directory):
            parts.engine.resume(checkpoint)
    else:
        directory.clear_logs()
    start = parts.steps_done
    directory.write_text("config.yaml", yaml.safe_dump(config.to_flat(), allow_unicode=True, sort_keys=False))
    with (
        Progress(parts.plan.total, config.method.stage, settings.disable_tqdm, initial=start) as progress,
        MetricsLog(
            directory,
            tensorboard="tensorboard" in settings.report_to,
            total_steps=parts.plan.total,
            start_step=start,
            run_name=settings.run_name,
            notify=progress.note,
        ) as log,
        explained(directory),
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
            with reading(checkpoint, directory):
                monitor.resume(checkpoint, start)
        before = _before(parts, stage, monitor)
        if not monitor.out_of_patience:
            with monitor.interruptible():
                stage.fit(monitor)
        final = _last_evaluation(parts, stage, monitor)
    results = {**_train_results(parts, monitor.totals), **_first(before)}
    return _write_results(parts, results, final, notify)


def _before(parts: Parts, stage: Stage, monitor: Monitor) -> Mapping[str, Any]:
    """The evaluation before training: made now, or by the attempt that a resumed run began with."""
    if not stage.measures_before:
        return {}
    if parts.steps_done == 0:
        return monitor.evaluate(0)
    lines = parts.directory.read_jsonl(TRAINER_LOG)
    return next((line for line in lines if line.get("current_steps") == 0), {})


def _last_evaluation(parts: Parts, stage: Stage, monitor: Monitor) -> Mapping[str, float]:
    """Measure what the run ends with, the best weights where the user asks for them; Ctrl-C stops at once here."""
    try:
        final = monitor.evaluate(parts.steps_done)
    except KeyboardInterrupt:
        monitor.save(parts.steps_done)
        raise
    best = monitor.best.step
    if parts.config.train.load_best_model_at_end and best not in (None, parts.steps_done):
        folder = parts.directory.path / f"checkpoint-{best}"
        with reading(folder, parts.directory):
            parts.engine.load_weights(folder)
        final = dict(stage.evaluate()) if stage.evaluate else {}
    return final


def _train_results(parts: Parts, totals: Totals) -> dict[str, Any]:
    """``train_results.json`` under the names that users of transformers know; of all attempts at the run together."""
    return {
        "epoch": parts.steps_done / parts.plan.per_epoch,
        "train_loss": totals.loss / max(totals.steps, 1),
        "train_runtime": totals.seconds,
        "train_samples_per_second": totals.steps * parts.rows_per_step / totals.seconds,
        "train_steps_per_second": totals.steps / totals.seconds,
        "train_tokens": parts.engine.trained_tokens,
        "train_tokens_per_second": parts.engine.trained_tokens / max(parts.engine.computed_seconds, 1e-9),
        "peak_memory_bytes": peak_memory_bytes(),
        "total_steps": parts.plan.total,
        "stopped_at_step": parts.steps_done,
    }


def _first(before: Mapping[str, Any]) -> dict[str, float]:
    """The evaluation before training, as ``eval_loss_before`` and so on."""
    keep = ("eval_loss", "eval_perplexity", "eval_reward", "eval_accuracy")
    return {f"{name}_before": before[name] for name in keep if name in before}


def _write_results(
    parts: Parts, results: dict[str, Any], evaluation: Mapping[str, float], notify: Callable[[str], None]
) -> dict[str, Any]:
    """Save the model, then the numbers: the numbers mark a finished run."""
    directory = parts.directory
    directory.save_model(lambda folder: parts.assembly.save(folder, parts.tokenizer), reads=_read_folders(parts.config))
    epoch = {"epoch": results["epoch"]}
    if parts.config.train.plot_loss:
        try:
            plot_run(directory)
        except OSError as error:
            notify(f"the curves could not be drawn ({reason(error)}); trainer_log.jsonl holds their numbers")
    if evaluation:
        directory.write_json("eval_results.json", {**epoch, **evaluation})
    directory.write_json("train_results.json", results)
    everything = {**results, **evaluation}
    directory.write_json("all_results.json", everything)
    return everything
