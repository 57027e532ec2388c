"""One training run from its configuration to everything that its run directory holds."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import yaml
from transformers import PreTrainedTokenizerBase

from posttrain.config import RunConfig, is_online
from posttrain.data.datasets import Splits, load_dataset
from posttrain.data.stream import RowStream, stream_dataset
from posttrain.engine import Processes, joined
from posttrain.models.assemble import Assembly, offline_assembly, online_assembly
from posttrain.models.fetch import resolve_model
from posttrain.models.given import NOTHING_GIVEN, Given
from posttrain.models.hub import planned_upload, upload, write_card
from posttrain.models.load import load_tokenizer
from posttrain.train.disk import reason
from posttrain.train.distribution import write_distribution
from posttrain.train.failures import explained, kept, reading
from posttrain.train.machine import peak_memory_bytes
from posttrain.train.metrics import TRAINER_LOG, MetricsLog
from posttrain.train.monitor import Monitor, Totals
from posttrain.train.onlooker import Onlooker
from posttrain.train.pace import Pace, measured
from posttrain.train.parts import Parts, make_engine, make_plan
from posttrain.train.plots import plot_run
from posttrain.train.progress import Progress
from posttrain.train.reference import with_reference
from posttrain.train.run_directory import RunDirectory
from posttrain.train.schedule import StepsPlan
from posttrain.train.stages import Stage, make_stage
from posttrain.train.token_limit import choose_max_tokens
from posttrain.train.trackers import Trackers, check_trackers
from posttrain.train.unjudged import EXCLUDED, judged


def train(
    config: RunConfig, *, notify: Callable[[str], None] = lambda sentence: None, given: Given = NOTHING_GIVEN
) -> dict[str, Any]:
    """Run one stage.

    Args:
        config: loaded with ``command="train"``.
        notify: receives sentences for the user.
        given: model and tokenizer that are in memory already.

    Returns:
        What ``all_results.json`` holds.

    Raises:
        UserError: bad configuration, data or folders, before anything is trained.
        RunError: a run that failed; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint.
    """
    with joined(timeout=config.train.ddp_timeout, say=notify) as processes:
        said = notify if processes.is_first else _silent
        parts = prepared(config, processes, said, given)
        return fit(parts, said) if isinstance(parts, Parts) else parts


def prepared(
    config: RunConfig, processes: Processes, notify: Callable[[str], None], given: Given = NOTHING_GIVEN
) -> Parts | dict[str, Any]:
    """Everything that a run needs, its directory made; or the results of one that was finished before.

    Raises:
        UserError: as ``train``.
    """
    settings = config.train
    for sentence in config.warnings:
        notify(sentence)
    model = config.model
    place: dict[str, Any] = {
        "overwrite": settings.overwrite_output_dir,
        "resume": settings.resume_from_checkpoint,
        "reads": read_folders(config),
    }
    RunDirectory.check(settings.output_dir, **place)
    check_trackers(config.trackers)
    planned_upload(config, settings.output_dir)  # what is in its way is said before anything is trained
    with processes.first_alone():
        folder = resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir)
    tokenizer = given.tokenizer or load_tokenizer(
        folder, use_fast=model.use_fast_tokenizer, trust_remote_code=model.trust_remote_code
    )
    kept = judged(config, _splits(config, tokenizer), processes)
    splits = kept.splits
    for sentence in splits.notes if config.data.streaming else (splits.report.sentence(), *splits.notes):
        notify(sentence)
    plan = make_plan(config, 0 if config.data.streaming else len(splits.train), processes.size)
    finished = _finished(Path(settings.output_dir).expanduser(), plan, settings.resume_from_checkpoint)
    if finished is not None:
        notify(f"{settings.output_dir} already holds this run, finished: nothing to do")
        return finished
    assembly = dressed(config, tokenizer, splits, given)
    for sentence in assembly.notes:
        notify(sentence)
    # only now: whatever was wrong with the configuration has been said, and an earlier run may be removed
    processes.wait()
    with processes.first_alone():
        directory = _directory(settings.output_dir, place, processes)
    if directory.notice:
        notify(directory.notice)
    if processes.is_first and (kept.excluded or (directory.path / EXCLUDED).exists()):
        directory.write_json(EXCLUDED, kept.excluded)
    engine = make_engine(config, assembly.roles, plan, processes)
    engine.shares.announce = notify
    for sentence in (*engine.notes, *filter(None, [choose_max_tokens(config, engine)])):
        notify(sentence)
    return Parts(config, directory, tokenizer, splits, plan, assembly, engine)


def _splits(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Splits:
    """The rows of the run: all of them, or those that are read as they are needed."""
    train, margin_column = config.train, config.reward_model.margin_column
    if not config.data.streaming:
        return load_dataset(config.data, tokenizer, config.method.stage, seed=train.seed, margin_column=margin_column)
    return stream_dataset(
        config.data,
        tokenizer,
        config.method.stage,
        seed=train.seed,
        order_seed=train.seed if train.data_seed is None else train.data_seed,
        shuffle=not train.disable_shuffling,
        margin_column=margin_column,
    )


def dressed(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, splits: Splits, given: Given = NOTHING_GIVEN
) -> Assembly:
    """The roles of a run, loaded and under the template of its rows, which the tokenizer takes on.

    Raises:
        UserError: models or adapters that cannot be loaded, or do not go together.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        make_assembly = online_assembly if is_online(config.method.stage) else offline_assembly
        assembly = make_assembly(config, given)
    if splits.template is not None:
        tokenizer.chat_template = splits.template.chat_template
        model = config.model
        base = resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir)
        assembly = assembly.under_template(splits.template, allow_mismatch=model.allow_mismatch, base=Path(base))
    resolved = splits.template.notes if splits.template else ()
    unpacked = (str(w.message) for w in caught if "cannot run packed" in str(w.message))
    return replace(assembly, notes=(*resolved, *assembly.notes, *unpacked))


def _silent(sentence: str) -> None:
    """Process 0 has said it."""


def _directory(path: str, place: Mapping[str, Any], processes: Processes) -> RunDirectory:
    """The run directory, which process 0 makes and writes to."""
    return RunDirectory.create(path, **place) if processes.is_first else Onlooker(Path(path).expanduser())


def read_folders(config: RunConfig) -> list[str]:
    """Models and adapters that the run loads."""
    model, reward = config.model, config.reward
    rewards = [name for name in (reward.model_folder, reward.reward_classifier, *reward.reward_ensemble) if name]
    reference = [name for name in (config.preference.ref_model, *config.preference.ref_model_adapters) if name]
    return [model.model_name_or_path, *model.adapter_name_or_path, *rewards, *reference]


def _finished(folder: Path, plan: StepsPlan, resume: bool | str | None) -> dict[str, Any] | None:
    """The results of a run that came to its end in ``folder``, where the user asks to resume it; else None."""
    directory = RunDirectory(folder)
    if not resume or (directory.finished_steps or 0) < plan.total:
        return None
    results: dict[str, Any] = directory.read_json("all_results.json")
    return results


def fit(parts: Parts, notify: Callable[[str], None]) -> dict[str, Any]:
    """Resume or start, loop, and write the results; see ``train`` for what it raises."""
    config, directory, settings = parts.config, parts.directory, parts.config.train
    processes = parts.engine.processes
    checkpoint = directory.resume_checkpoint(settings.resume_from_checkpoint)
    _require_same_start(parts, checkpoint)
    parts = _begun(parts, checkpoint)
    start = parts.steps_done
    processes.wait()  # until all have read the checkpoint
    pace = _pace(parts, notify)
    directory.write_text("config.yaml", yaml.safe_dump(config.to_flat(), allow_unicode=True, sort_keys=False))
    with (
        _shown(processes) as stream,
        Progress(
            parts.plan.total, config.method.stage, settings.disable_tqdm, initial=start, stream=stream
        ) as progress,
        MetricsLog(
            directory,
            total_steps=parts.plan.total,
            start_step=start,
            trackers=_trackers(parts, start, progress.note),
        ) as log,
        explained(directory),
    ):
        parts.engine.shares.announce = progress.note
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
            alarms=stage.alarms,
            processes=processes,
            pace=pace,
        )
        if checkpoint is not None:
            with reading(checkpoint, directory):
                monitor.resume(checkpoint, start)
            monitor.end_if_stopped(start)
        with kept(directory, lambda: monitor.save(parts.steps_done) if parts.steps_done else None):
            before = _before(parts, stage, monitor)
            if not monitor.has_ended:
                with monitor.interruptible():
                    stage.fit(monitor)
            final = _last_evaluation(parts, stage, monitor)
        results = {**pace.results(), **_train_results(parts, monitor.totals), **_first(before)}
        results |= _alarms(stage, monitor)
        log.trackers.end({**results, **final})
    if config.data.streaming:
        notify(parts.splits.report.sentence())
    results = _write_results(parts, results, final, notify)
    planned = planned_upload(config, settings.output_dir)
    if planned is not None and processes.is_first:
        write_card(config, directory.path)
        notify(f"uploaded to {upload(directory.path, planned)}")
    return results


def _begun(parts: Parts, checkpoint: Path | None) -> Parts:
    """The parts with what the reference says, at the checkpoint or at the start of empty logs."""
    with _shown(parts.engine.processes) as stream, explained(parts.directory):
        parts = with_reference(parts, stream)
    if checkpoint is None:
        parts.directory.clear_logs()
        return parts
    with reading(checkpoint, parts.directory):
        parts.engine.resume(checkpoint)
    return parts


def _pace(parts: Parts, notify: Callable[[str], None]) -> Pace:
    """Nothing counted yet, and what the machine can do, where that is to be measured."""
    pace = Pace(measured(parts.engine, parts.config.train.measure_limits), parts.engine.processes)
    if pace.limits is not None:
        notify(pace.sentence())
    return pace


def _trackers(parts: Parts, start: int, notify: Callable[[str], None]) -> Trackers | None:
    """Where process 0 sends the numbers of the run."""
    if not parts.engine.processes.is_first:
        return None
    config = parts.config
    return Trackers.opened(parts.directory, config.trackers, config.to_flat(), start_step=start, notify=notify)


@contextmanager
def _shown(processes: Processes) -> Iterator[TextIO]:
    """Where progress goes: standard error, and for the silent processes nowhere."""
    if processes.is_first:
        yield sys.stderr
    else:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield nowhere


def _require_same_start(parts: Parts, checkpoint: Path | None) -> None:
    """Processes whose data, model or checkpoint differ would train different models without a sign of it.

    Raises:
        UserError: if they do.
    """
    if parts.engine.processes.size == 1:
        return
    weights = sum(float(p.detach().double().abs().sum()) for p in parts.engine.roles.parameters() if p.requires_grad)
    parts.engine.processes.require_equal(
        [parts.assembly.lineage.base.fingerprint, weights, _counted(parts.splits), checkpoint and checkpoint.name],
        "the processes of this run do not start from the same: their model, their data or their checkpoint differ. On "
        "several machines, give paths on a disk that all of them see",
    )


def _counted(splits: Splits) -> list[int]:
    """A number of the training rows that differs where they do."""
    rows = splits.train
    return [sum(map(len, rows.head()))] if isinstance(rows, RowStream) else [len(rows)]


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
        monitor.end_if_stopped(parts.steps_done)
    except KeyboardInterrupt:
        monitor.save(parts.steps_done)
        raise
    best = monitor.ends_with
    if best not in (None, parts.steps_done):
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


def _alarms(stage: Stage, monitor: Monitor) -> dict[str, Any]:
    """Every alarm that was raised with its first step, and where a run went back to for one."""
    if stage.alarms is None:
        return {}
    back = monitor.rolled_back_to
    return {"alarms": stage.alarms.first_steps, **({} if back is None else {"rolled_back_to": back})}


def _first(before: Mapping[str, Any]) -> dict[str, float]:
    """The evaluation before training, as ``eval_loss_before`` and so on."""
    keep = ("eval_loss", "eval_perplexity", "eval_reward", "eval_accuracy")
    return {f"{name}_before": before[name] for name in keep if name in before}


def _write_results(
    parts: Parts, results: dict[str, Any], evaluation: Mapping[str, float], notify: Callable[[str], None]
) -> dict[str, Any]:
    """Save the model, then the numbers: the numbers mark a finished run."""
    directory = parts.directory
    directory.save_model(lambda folder: parts.assembly.save(folder, parts.tokenizer), reads=read_folders(parts.config))
    epoch = {"epoch": results["epoch"]}
    if parts.engine.processes.is_first:
        try:
            write_distribution(directory, plots=parts.config.train.plot_loss)
            if parts.config.train.plot_loss:
                plot_run(directory)
        except OSError as error:
            notify(f"the curves could not be drawn ({reason(error)}); trainer_log.jsonl holds their numbers")
    if evaluation:
        directory.write_json("eval_results.json", {**epoch, **evaluation})
    directory.write_json("train_results.json", results)
    everything = {**results, **evaluation}
    directory.write_json("all_results.json", everything)
    return everything
