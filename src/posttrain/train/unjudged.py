"""Prompts whose reward cannot be known, as their own reference fails: left out before a run, counted and listed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig, is_online
from posttrain.data.datasets import Splits
from posttrain.data.encode import EncodedPrompt, Report
from posttrain.errors import UserError
from posttrain.rewards import SqlExecutionReward

EXCLUDED = "excluded.json"
_REASON = "the reference SQL does not run"
_RUNS_SQL = "sql_execution"


@dataclass(frozen=True)
class Judged:
    """What a run trains on and is evaluated on.

    Attributes:
        splits: without the prompts that are left out; their report counts them.
        excluded: split, row from 1, reason and reference SQL of each of them.
    """

    splits: Splits
    excluded: tuple[dict[str, Any], ...] = ()


def judged(config: RunConfig, splits: Splits, *, resumes: bool) -> Judged:
    """Run the reference SQL of every prompt where running SQL is a reward, and leave out those whose fails.

    A run that resumes leaves out what it left out before. Streamed rows are not known beforehand.

    Raises:
        UserError: a row has no database or no reference, or no reference of a split runs.
    """
    names = {*config.reward.reward_funcs, *config.alarms.alarm_reward_funcs}
    if not is_online(config.method.stage) or _RUNS_SQL not in names or config.data.streaming:
        return Judged(splits)
    before = Path(config.train.output_dir).expanduser() / EXCLUDED
    if resumes and before.is_file():
        excluded = _read(before)
    else:
        reward = SqlExecutionReward.configured(config)
        excluded = tuple(
            entry
            for split, prompts in (("train", splits.train), ("validation", splits.validation))
            for entry in _failing(reward, split, prompts)
        )
    train, report = _without(splits.train, splits.report, "train", excluded)
    validation, other = _without(splits.validation, splits.validation_report, "validation", excluded)
    held_out = [entry for entry in excluded if entry["split"] == "validation"]
    notes = splits.notes
    if held_out:
        first = held_out[0]
        notes = (*notes, f"held out: dropped {len(held_out)}: {_REASON} (first: {_place(first)})")
    found = replace(splits, train=train, report=report or splits.report, notes=notes)
    return Judged(replace(found, validation=validation, validation_report=other), excluded)


def _read(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}, which lists the prompts that this run leaves out, cannot be read ({error}); without it the run "
            "cannot go on as it began. Begin again with overwrite_output_dir: true"
        ) from error


def _failing(reward: SqlExecutionReward, split: str, prompts: Sequence[EncodedPrompt]) -> list[dict[str, Any]]:
    failures = reward.failing([prompt.extras for prompt in prompts])
    if prompts and len(failures) == len(prompts):
        first = failures[1]
        raise UserError(
            f"none of the {len(prompts)} reference statements of the {split} rows runs, so that no answer can be "
            f"judged. Row 1, on {first.db}: {first.reason}: {first.sql}"
        )
    return [
        {"split": split, "row": row, "db": failure.db, "reason": failure.reason, "sql": failure.sql}
        for row, failure in failures.items()
    ]


def _without(
    prompts: Sequence[EncodedPrompt], report: Report | None, split: str, excluded: Sequence[dict[str, Any]]
) -> tuple[Sequence[EncodedPrompt], Report | None]:
    rows = {entry["row"]: entry for entry in excluded if entry["split"] == split}
    if not rows:
        return prompts, report
    if report is not None:
        report.kept -= len(rows)
        report.dropped[_REASON] += len(rows)
        report.first_dropped.setdefault(_REASON, _place(rows[min(rows)]))
    return [prompt for number, prompt in enumerate(prompts, start=1) if number not in rows], report


def _place(entry: dict[str, Any]) -> str:
    return f"row {entry['row']} on {entry['db']}, {entry['reason']}"
