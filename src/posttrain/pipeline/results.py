"""What the stages of a pipeline left behind, read back for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.config import PipelineConfig, PipelineStage
from posttrain.pipeline.state import Record, State
from posttrain.train.metrics import TRAINER_LOG
from posttrain.train.run_directory import RunDirectory

_NAMES = {
    "sft": "SFT",
    "rm": "reward model",
    "remax": "ReMax",
    "online_dpo": "online DPO",
    "reinforce": "REINFORCE++",
    **{name: name.upper() for name in ("ppo", "rloo", "grpo", "dpo", "kto", "orpo", "cpo")},
}
RESULT_FILES = {"train": "all_results.json", "eval": "eval_results.json"}


@dataclass(frozen=True, kw_only=True)
class StageResults:
    """One stage.

    Attributes:
        record: how it ran; None when it did not.
        numbers: what ``all_results.json`` or ``eval_results.json`` holds; empty when there is none.
        log: lines of ``trainer_log.jsonl``. predictions: lines of ``predictions.jsonl``.
    """

    stage: PipelineStage
    record: Record | None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    predictions: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.stage.name

    @property
    def kind(self) -> str:
        """pt, sft, rm, ppo, export, evaluate, generate or label."""
        return self.stage.kind

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one column of the log, where it has a number."""
        points = [(row["current_steps"], row[key]) for row in self.log if isinstance(row.get(key), int | float)]
        return [float(step) for step, _ in points], [float(value) for _, value in points]


def read_results(pipeline: PipelineConfig, state: State) -> tuple[StageResults, ...]:
    """The stages in order, each with what it left; a file that is missing or damaged counts as empty."""
    return tuple(_read(stage, state) for stage in pipeline.stages)


def sql_evaluation(stages: Sequence[StageResults]) -> StageResults | None:
    """The last evaluation of SQL, which is what models are compared by."""
    found = [stage for stage in stages if stage.numbers.get("task") == "sql" and stage.numbers.get("variants")]
    return found[-1] if found else None


def called(name: str) -> str:
    """A variant's name as readers write it."""
    return _NAMES.get(name.lower(), name)


def _read(stage: PipelineStage, state: State) -> StageResults:
    directory = RunDirectory(Path(str(stage.values["output_dir"])).expanduser())
    file = directory.path / RESULT_FILES.get(stage.command, "")
    numbers: Any = {}
    if file.is_file():
        try:
            numbers = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            numbers = {}
    return StageResults(
        stage=stage,
        record=state.records.get(stage.name),
        numbers=numbers if isinstance(numbers, dict) else {},
        log=directory.read_jsonl(TRAINER_LOG) if stage.command == "train" else (),
        predictions=directory.read_jsonl("predictions.jsonl") if stage.command == "eval" else (),
    )
