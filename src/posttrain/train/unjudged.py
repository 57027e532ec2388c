"""Prompts whose reward cannot be known, as their own reference fails: left out before a run, counted and listed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig, is_online
from posttrain.data.datasets import Splits
from posttrain.data.encode import EncodedPrompt
from posttrain.engine import Processes
from posttrain.errors import UserError
from posttrain.rewards import SqlExecutionReward
from posttrain.train.run_directory import RunDirectory

EXCLUDED = "excluded.json"
_REASON = "the reference SQL does not run"
_RUNS_SQL = "sql_execution"
TRAIN, HELD_OUT = "train", "held out"


@dataclass(frozen=True)
class Judged:
    """What a run trains on and is evaluated on.

    Attributes:
        splits: without the prompts that are left out; their report counts them.
        excluded: split, row from 1, reason and reference SQL of each of them.
    """

    splits: Splits
    excluded: tuple[dict[str, Any], ...] = ()


def judged(config: RunConfig, splits: Splits, processes: Processes) -> Judged:
    """Run the reference SQL of every prompt where running SQL is a reward, and leave out those whose fails.

    A run that resumes leaves out what it left out before, and all processes what the first one does: a reference that
    takes about as long as it may would else be now in, now out. Streamed rows are not known beforehand.

    Raises:
        UserError: a row has no database or no reference, or no reference of a split runs.
    """
    paying = is_online(config.method.stage) and not config.data.streaming
    trains = paying and _RUNS_SQL in config.reward.reward_funcs
    measures = trains or (paying and _RUNS_SQL in config.alarms.alarm_reward_funcs)
    if not measures:
        return Judged(splits)
    checkpoint = _continues_from(config)
    if checkpoint is not None:
        excluded = _read(checkpoint.parent / EXCLUDED)
    else:
        reward = SqlExecutionReward.configured(config)
        asked = {TRAIN: splits.train if trains else (), HELD_OUT: splits.validation}
        found = [entry for split, prompts in asked.items() for entry in _failing(reward, split, prompts)]
        excluded = tuple(processes.from_first(found))
    report = splits.report
    if rows := [entry for entry in excluded if entry["split"] == TRAIN]:
        dropped = Counter({**report.dropped, _REASON: len(rows)})
        first = {**report.first_dropped, _REASON: _place(rows[0])}
        report = replace(report, kept=report.kept - len(rows), dropped=dropped, first_dropped=first)
    notes = splits.notes
    if rows := [entry for entry in excluded if entry["split"] == HELD_OUT]:
        notes = (*notes, f"{HELD_OUT}: dropped {len(rows)}: {_REASON} (first: {_place(rows[0])})")
    train, validation = _without(splits.train, TRAIN, excluded), _without(splits.validation, HELD_OUT, excluded)
    return Judged(replace(splits, train=train, validation=validation, report=report, notes=notes), excluded)


def _continues_from(config: RunConfig) -> Path | None:
    """The checkpoint that the run will go on from."""
    settings = config.train
    if settings.overwrite_output_dir and not settings.resume_from_checkpoint:
        return None
    return RunDirectory(Path(settings.output_dir).expanduser()).resume_checkpoint(settings.resume_from_checkpoint)


def _read(path: Path) -> tuple[dict[str, Any], ...]:
    """What a run left out; nothing where it wrote no list."""
    if not path.exists():
        return ()
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}, which lists the prompts that this run leaves out, cannot be read ({error}); without it the run "
            "cannot go on as it began. Begin again with overwrite_output_dir: true"
        ) from error


def _failing(reward: SqlExecutionReward, split: str, prompts: Sequence[EncodedPrompt]) -> list[dict[str, Any]]:
    try:
        failures = reward.failing([prompt.extras for prompt in prompts])
    except UserError as error:
        raise error if split == TRAIN else UserError(f"{split}: {error}") from error
    return [
        {"split": split, "row": row, "db": failure.db, "reason": failure.reason, "sql": failure.sql}
        for row, failure in failures.items()
    ]


def _without(prompts: Sequence[EncodedPrompt], split: str, excluded: Sequence[dict[str, Any]]) -> Sequence[Any]:
    rows = {entry["row"] for entry in excluded if entry["split"] == split}
    return [prompt for number, prompt in enumerate(prompts, start=1) if number not in rows] if rows else prompts


def _place(entry: dict[str, Any]) -> str:
    return f"row {entry['row']} on {entry['db']}, {entry['reason']}"
