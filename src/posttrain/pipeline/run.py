"""`posttrain run`: the stages of one file, each in its own process, skipping what is done already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from posttrain.config import PipelineConfig, PipelineStage, PreparedData, load_pipeline
from posttrain.errors import RunError, UserError
from posttrain.pipeline.inputs import outside_inputs
from posttrain.pipeline.prepare import check_prepared, files_are_there, prepare, prepared_digest
from posttrain.pipeline.processes import INTERRUPTED, Ended, run_process
from posttrain.pipeline.report import write_report
from posttrain.pipeline.state import Record, State, reads, stage_digest
from posttrain.train.metrics import duration
from posttrain.train.progress import Progress

PROGRAM: Sequence[str] = (sys.executable, "-m", "posttrain")
"""What runs a stage; the command and its arguments follow."""


def run_pipeline(path: str | Path, overrides: Sequence[str] = (), notify: Callable[[str], None] = print) -> Path:
    """Prepare data, run every stage that is not done, write the report.

    A stage is done when it came to its end with the same configuration on the same inputs; an interrupted one
    continues from its last checkpoint; one whose configuration changed is run again, and so is what was made from it.

    Args:
        path: the pipeline file. overrides: as in ``load_pipeline``.
        notify: receives sentences and the report's tables.

    Returns:
        The report.

    Raises:
        UserError: bad input, or a stage ended with status 2.
        RunError: a stage failed.
        KeyboardInterrupt: Ctrl-C, after the stage has written its checkpoint.
    """
    pipeline = load_pipeline(path, overrides)
    for prepared in pipeline.prepare:
        check_prepared(prepared)
    folder = _folder(pipeline)
    for sentence in pipeline.warnings:
        notify(sentence)
    run = _Run(pipeline, folder, " ".join(["posttrain run", str(path), *overrides]), notify)
    for prepared in pipeline.prepare:
        run.prepare(prepared)
    for number, stage in enumerate(pipeline.stages, start=1):
        run.stage(number, stage)
    return write_report(pipeline, run.state, notify)


def _folder(pipeline: PipelineConfig) -> Path:
    folder = Path(pipeline.output_dir).expanduser()
    try:
        (folder / "configs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {folder} cannot be written to: {error.strerror or error}") from error
    return folder


class _Run:
    """A pipeline while it runs."""

    def __init__(self, pipeline: PipelineConfig, folder: Path, again: str, notify: Callable[[str], None]) -> None:
        self.pipeline = pipeline
        self.folder = folder
        self.again = again
        self.notify = notify
        self.state = State(folder)

    def prepare(self, prepared: PreparedData) -> None:
        name = _prepared_name(prepared)
        wanted, record = prepared_digest(prepared), self.state.records.get(name)
        if record and record.finished and record.digest == wanted and files_are_there(prepared):
            self.notify(f"[data] {prepared.generator} · {prepared.output}: there already")
            return
        self.notify(f"[data] {prepared.generator} · {prepared.output}")
        with Progress(1, prepared.generator) as progress:
            contents = prepare(prepared, lambda done, total: progress.phase("write", done, total))
            progress.update(1)
        self.state.put(name, Record(digest=wanted, finished=True, run=contents))

    def stage(self, number: int, stage: PipelineStage) -> None:
        """Run one stage unless it is done."""
        wanted = self._digest(stage)
        record = self.state.records.get(stage.name)
        header = f"[{number}/{len(self.pipeline.stages)}] {stage.name} · {stage.values['output_dir']}"
        if record and record.finished and record.digest == wanted and _result(stage).exists():
            self.notify(f"{header}: done already")
            return
        continues = record is not None and record.digest == wanted and _has_begun(stage, record)
        extra = _start(stage, record, continues)
        self.notify(header + self._expected(number, extra))
        config = self._written(stage)
        if record is None or not continues:
            record = Record(digest=wanted, replaces=_is_ours(stage, record), found=_mark(stage))
        self.state.put(stage.name, record)
        ended = run_process([*PROGRAM, stage.command, str(config), *extra])
        record.seconds += ended.seconds
        record.peak_memory_bytes = max(record.peak_memory_bytes, ended.peak_memory_bytes)
        record.finished = ended.status == 0
        self.state.put(stage.name, record)
        self._check(stage, ended)

    def _digest(self, stage: PipelineStage) -> str:
        """Of the stage, and of what it reads: preparations and earlier stages by their runs, the rest by its files."""
        folders = {_prepared_name(prepared): prepared.output for prepared in self.pipeline.prepare}
        for earlier in self.pipeline.stages:
            if earlier.name == stage.name:
                break
            folders[earlier.name] = str(earlier.values["output_dir"])
        runs = {name: self.state.records[name].run for name, folder in folders.items() if reads(stage, folder)}
        return stage_digest(stage, runs, outside_inputs(stage, folders.values()))

    def _written(self, stage: PipelineStage) -> Path:
        path = self.folder / "configs" / f"{stage.name}.yaml"
        text = yaml.safe_dump(dict(stage.values), allow_unicode=True, sort_keys=False)
        try:
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
        return path

    def _expected(self, number: int, extra: Sequence[str]) -> str:
        """How it starts, and how long the rest took when it ran the last time, if it did."""
        words = []
        if "resume_from_checkpoint=true" in extra:
            words.append("continued")
        elif "overwrite_output_dir=true" in extra:
            words.append("again: its configuration, its inputs or its results changed")
        rest = [self.state.records.get(stage.name) for stage in self.pipeline.stages[number - 1 :]]
        known = [record.seconds for record in rest if record is not None and record.finished]
        if rest and len(known) == len(rest):
            words.append(f"about {duration(sum(known))} left, judging by the last time")
        return f" ({'; '.join(words)})" if words else ""

    def _check(self, stage: PipelineStage, ended: Ended) -> None:
        if ended.status == 0 and not ended.interrupted:
            return
        if ended.interrupted or ended.status == INTERRUPTED:
            self.notify(f"stage {stage.name} was interrupted; `{self.again}` continues with it.")
            raise KeyboardInterrupt
        advice = f"`{self.again}` continues with this stage; those before it are kept."
        if ended.status == 2:
            raise UserError(f"stage {stage.name} was refused; the message above says why. Once corrected, {advice}")
        if ended.status < 0:
            raise RunError(
                f"stage {stage.name} was ended by signal {-ended.status} after {duration(ended.seconds)}, with "
                f"{ended.peak_memory_bytes / 1e9:.1f} GB in memory. Signal 9 mostly means that memory ran out: lower "
                f"per_device_train_batch_size or cutoff_len. {advice[0].upper()}{advice[1:]}"
            )
        raise RunError(f"stage {stage.name} failed; the message above says why. {advice}")


def _prepared_name(prepared: PreparedData) -> str:
    return f"prepare.{prepared.generator}:{prepared.output}"


def _start(stage: PipelineStage, record: Record | None, continues: bool) -> list[str]:
    """Overrides that say how a stage treats what lies in its folder."""
    if stage.command == "train" and continues:
        return ["resume_from_checkpoint=true"]
    if stage.command not in ("train", "export", "label") or not _is_ours(stage, record):
        return []
    return ["overwrite_output_dir=true", *(["resume_from_checkpoint=false"] if stage.command == "train" else [])]


def _has_begun(stage: PipelineStage, record: Record) -> bool:
    """Whether something of this unfinished run lies in its folder, not only of one before it."""
    return not record.finished and _mark(stage) not in (None, record.found)


def _is_ours(stage: PipelineStage, record: Record | None) -> bool:
    """Whether what lies in the folder came from this pipeline, so that it may be replaced."""
    return record is not None and (record.finished or record.replaces or _has_begun(stage, record))


def _mark(stage: PipelineStage) -> int | None:
    """When the file was written that a run of this stage writes once it is under way; None where there is none."""
    folder = Path(str(stage.values["output_dir"])).expanduser()
    path = folder / "config.yaml" if stage.command == "train" else _result(stage)
    return path.stat().st_mtime_ns if path.exists() else None


def _result(stage: PipelineStage) -> Path:
    """The file that marks a finished stage."""
    folder = Path(str(stage.values["output_dir"])).expanduser()
    if stage.command == "train":
        return folder / "all_results.json"
    if stage.command == "eval":
        return folder / "eval_results.json"
    if stage.command in ("generate", "label") and stage.values.get("output_file"):
        return Path(str(stage.values["output_file"])).expanduser()
    if stage.command == "label":
        return folder / "preference_pairs.jsonl"
    return folder / "config.json" if stage.command == "export" else folder
