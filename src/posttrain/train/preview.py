"""What a configuration will do, found out without training: rows, steps, memory and disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.config import RunConfig, is_online
from posttrain.data.cache import FILE
from posttrain.data.datasets import load_dataset
from posttrain.data.encode import EncodedPair
from posttrain.data.stream import looked_at
from posttrain.errors import UserError
from posttrain.models.fetch import resolve_model
from posttrain.models.load import load_tokenizer
from posttrain.train.machine import free_memory_bytes
from posttrain.train.memory import MemoryPlan, memory_plan
from posttrain.train.parts import make_plan, optimizer_rows
from posttrain.train.schedule import StepsPlan


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A training run before it runs.

    Attributes:
        num_rows, num_held_out: rows to train on (pairs, prompts) and to measure. account: what became of what was read.
        steps: of the whole run; None where rows or their division are in the way.
        rows_per_step: rows, pairs or completions of a step. optimizer_steps: of the whole run.
        longest: tokens of the longest row or prompt. num_tokens: of all rows.
        memory: planned; None where the model is not there. free_memory: bytes.
        free_disk: bytes where ``output_dir`` lies. num_checkpoints: kept at the end.
        problems: what would stop the run.
    """

    num_rows: int = 0
    num_held_out: int = 0
    account: str = ""
    steps: StepsPlan | None = None
    rows_per_step: int = 0
    optimizer_steps: int = 0
    longest: int = 0
    num_tokens: int = 0
    memory: MemoryPlan | None = None
    free_memory: int = 0
    free_disk: int = 0
    num_checkpoints: int = 0
    problems: tuple[str, ...] = ()


def preview(config: RunConfig, *, num_processes: int = 1) -> Preview:
    """Read the data and the models' config.json, and count.

    What is in the way of a count is among the problems; the rest is counted all the same.

    Args:
        config: loaded with ``command="train"``.
        num_processes: that will share the run.
    """
    problems: list[str] = []
    found: dict[str, Any] = {}
    try:
        found |= _counted(config, num_processes)
    except UserError as error:
        problems.append(str(error))
    steps = found.get("steps")
    try:
        longest, prompt = found.pop("unit", None), found.get("longest") if is_online(config.method.stage) else None
        found["memory"] = memory_plan(config, longest=longest, longest_prompt=prompt)
    except UserError as error:
        problems += [] if str(error) in problems else [str(error)]
    written = checkpoints_written(config, steps) if steps else 0
    place = Path(config.train.output_dir).expanduser().absolute()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    return Preview(
        **found,
        free_memory=free_memory_bytes(),
        free_disk=shutil.disk_usage(there).free,
        num_checkpoints=min(written, config.train.save_total_limit or written),
        problems=tuple(problems),
    )


def _counted(config: RunConfig, num_processes: int) -> dict[str, Any]:
    model, sampled = config.model, is_online(config.method.stage)
    folder = resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir)
    tokenizer = load_tokenizer(folder, use_fast=model.use_fast_tokenizer, trust_remote_code=model.trust_remote_code)
    data = looked_at(config.data)
    if data.tokenized_path and not (Path(data.tokenized_path).expanduser() / FILE).exists():
        data = replace(data, tokenized_path=None)  # the run itself makes it
    splits = load_dataset(
        data,
        tokenizer,
        config.method.stage,
        seed=config.train.seed,
        margin_column=config.reward_model.margin_column,
    )
    plan = make_plan(config, len(splits.train), num_processes)
    buffered = config.online.ppo_buffer_size if sampled else 1
    lengths = [_length(row) for row in splits.train]
    return {
        "num_rows": len(splits.train),
        "num_held_out": len(splits.validation),
        "account": splits.report.sentence(),
        "steps": plan,
        "rows_per_step": optimizer_rows(config, num_processes) * buffered,
        "optimizer_steps": plan.total * (config.online.ppo_epochs * buffered if sampled else 1),
        "longest": max(lengths),
        "num_tokens": sum(lengths),
        "unit": max(unit(row) for row in splits.train),
    }


def _length(row: Any) -> int:
    """Tokens of a row: of both answers in a pair, of all in a ranking."""
    if isinstance(row, EncodedPair):
        return len(row.chosen.input_ids) + len(row.rejected.input_ids)
    parts: Sequence[Any] = getattr(row, "rows", None) or (getattr(row, "row", row),)
    return sum(len(part.input_ids) for part in parts)


def unit(row: Any) -> int:
    """Tokens that stand in one micro-batch together, a prompt that answers share counted once."""
    if not isinstance(row, EncodedPair):
        return _length(row)
    chosen, rejected = row.chosen.input_ids, row.rejected.input_ids
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    return len(chosen) + len(rejected) - shared


def checkpoints_written(config: RunConfig, steps: StepsPlan) -> int:
    """How many checkpoints a run writes from its first step to its last, which always gets one."""
    train = config.train
    if train.save_strategy == "no":
        return 0
    if train.save_strategy == "epoch":
        return -(-steps.total // steps.per_epoch)
    return -(-steps.total // train.save_steps)
