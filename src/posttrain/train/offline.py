"""The offline loop: everything that learns from a fixed dataset."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.algorithms import KTO, Algorithm
from posttrain.config import RunConfig
from posttrain.data.batches import epoch_order
from posttrain.data.stream import RowStream
from posttrain.engine import Engine
from posttrain.train.monitor import Monitor
from posttrain.train.parts import optimizer_rows
from posttrain.train.schedule import StepsPlan
from posttrain.types import Batch, UnpairedBatch


@dataclass(frozen=True)
class Rows:
    """Encoded rows and how to make a batch of them.

    Attributes:
        train, validation: encoded rows; to train on also a stream of them.
        lengths: tokens of each training row, for grouping by length.
        collate: rows -> batch.
        num_processes: that share each batch.
    """

    train: Sequence[Any] | RowStream
    validation: Sequence[Any]
    lengths: Sequence[int]
    collate: Callable[[Sequence[Any]], Batch]
    num_processes: int = 1


def fit(config: RunConfig, engine: Engine, algorithm: Algorithm, rows: Rows, plan: StepsPlan, monitor: Monitor) -> None:
    """Train from the engine's step to the end of the plan, or until the monitor stops it."""
    steps = range(engine.step, plan.total)
    for step, chosen in zip(steps, _drawn(config, rows, plan, steps), strict=True):
        with monitor.pace.phase("train"):
            batch = rows.collate(chosen)
            engine.accumulate(algorithm, prepared(engine, algorithm, batch))
            stats = engine.optimizer_step()
        stats |= monitor.pace.take({"train": float(batch.attention_mask.sum())})
        if monitor.after_step(step + 1, stats):
            break


def prepared(engine: Engine, algorithm: Algorithm, batch: Batch) -> Batch:
    """A whole step with what the algorithm takes over all of it, before it is cut."""
    if isinstance(algorithm, KTO) and isinstance(batch, UnpairedBatch) and batch.mismatched is not None:
        mismatched_logps = engine.sequence_logps(batch.mismatched)
        return algorithm.with_reference_point(batch.to(engine.device), mismatched_logps)
    return batch


def evaluation(config: RunConfig, engine: Engine, algorithm: Algorithm, rows: Rows) -> Callable[[], dict[str, float]]:
    """A function that measures the validation rows under the names users know: ``eval_loss``, ``eval_runtime`` ..."""
    size = config.train.per_device_eval_batch_size
    starts = range(0, len(rows.validation), size)

    def evaluate() -> dict[str, float]:
        began = time.perf_counter()
        batches = (prepared(engine, algorithm, rows.collate(rows.validation[start : start + size])) for start in starts)
        found = {f"eval_{name}": value for name, value in engine.evaluate(algorithm, batches).items()}
        if config.method.stage == "pt":
            found["eval_perplexity"] = math.exp(min(found["eval_loss"], 700.0))
        return found | runtime(time.perf_counter() - began, len(rows.validation), len(starts))

    return evaluate


def runtime(seconds: float, num_rows: int, num_steps: int) -> dict[str, float]:
    """``eval_runtime`` in seconds and the two rates that go with it."""
    return {
        "eval_runtime": seconds,
        "eval_samples_per_second": num_rows / seconds,
        "eval_steps_per_second": num_steps / seconds,
    }


def _drawn(config: RunConfig, rows: Rows, plan: StepsPlan, steps: range) -> Iterator[list[Any]]:
    """The rows of each step, a function of the step and the seed."""
    size = optimizer_rows(config, rows.num_processes)
    if isinstance(rows.train, RowStream):
        yield from (rows.train.take(step * size, size) for step in steps)
        return
    order: tuple[int, list[int]] = (-1, [])
    for step in steps:
        epoch, place = divmod(step, plan.per_epoch)
        if order[0] != epoch:
            order = (epoch, _order(config, rows, epoch, size))
        yield [rows.train[i] for i in order[1][place * size : (place + 1) * size]]


def _order(config: RunConfig, rows: Rows, epoch: int, size: int) -> list[int]:
    assert not isinstance(rows.train, RowStream)
    seed = config.train.seed if config.train.data_seed is None else config.train.data_seed
    return epoch_order(
        len(rows.train),
        seed=seed,
        epoch=epoch,
        shuffle=not config.train.disable_shuffling,
        lengths=rows.lengths,
        group_by_length=config.data.group_by_length,
        batch_size=size,
    )
