"""A real piece of an offline run: its roles loaded, its longest batch forward and backward, one optimizer step."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from posttrain.config import RunConfig
from posttrain.data.batches import collate
from posttrain.data.datasets import Splits
from posttrain.data.template import pad_token_id
from posttrain.diagnose.findings import Finding, share
from posttrain.diagnose.folder import megabytes
from posttrain.diagnose.memory import longest_row
from posttrain.diagnose.rows import TWIN, sequences_of
from posttrain.models.forward import is_packed
from posttrain.models.roles import Roles
from posttrain.train.failures import explained
from posttrain.train.machine import peak_memory_bytes
from posttrain.train.metrics import duration
from posttrain.train.offline import prepared
from posttrain.train.parts import Parts, make_algorithm, make_engine, optimizer_rows
from posttrain.train.reference import with_reference
from posttrain.train.run import dressed
from posttrain.train.run_directory import RunDirectory
from posttrain.train.schedule import StepsPlan
from posttrain.train.stages import COLLATE
from posttrain.types import Role

# A first call that is faster than this is repeated: it has not shown what the next ones take.
_WARM_SECONDS = 3.0
_NEAR_CHANCE = 0.95
_FEW_RIGHT = 0.5
_LANGUAGE = ("pt", "sft")


def loaded(config: RunConfig, tokenizer: Any, splits: Splits, plan: StepsPlan) -> Parts:
    """The parts of a run, as the run makes them; its folder is not touched.

    Raises:
        UserError: models or adapters that cannot be loaded, or do not go together.
    """
    assembly = dressed(config, tokenizer, splits)
    engine = make_engine(config, assembly.roles, plan)
    return Parts(config, RunDirectory(Path(config.train.output_dir)), tokenizer, splits, plan, assembly, engine)


def weights(parts: Parts, seconds: float) -> Iterator[Finding]:
    """What was loaded, and what of it trains."""
    roles: Roles = parts.assembly.roles
    trained = sum(p.numel() for p in roles.parameters() if p.requires_grad)
    total = sum(p.numel() for p in roles.parameters())
    model = roles.backbone_of(Role.ACTOR if Role.ACTOR in roles else Role.REWARD)
    packed = "packed attention" if is_packed(model) else "padded batches, slower"
    message = f"loaded in {seconds:.1f} s; {trained / 1e6:.2f} of {total / 1e6:.1f} million numbers train, {packed}"
    if not trained:
        fix = "Look at finetuning_type, lora_target and freeze_trainable_layers"
        yield Finding(level="error", check="weights", message=f"{message}: nothing trains", fix=fix)
    else:
        yield Finding(level="ok", check="weights", message=message)
    for note in parts.assembly.notes:
        yield Finding(level="ok", check="weights", message=note)


def longest_batch(parts: Parts) -> Iterator[Finding]:
    """Forward, backward and one optimizer step on the longest rows that make a micro-batch.

    Raises:
        RunError: memory ran out, or a loss or gradient is no number.
    """
    rows = _longest(parts)
    algorithm = make_algorithm(parts.config)
    quiet = replace(parts.config, preference=replace(parts.config.preference, cache_ref_logps=False))
    quiet = replace(quiet, train=replace(quiet.train, disable_tqdm=True))
    small = replace(parts, config=quiet, splits=replace(parts.splits, train=rows, validation=[]))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    engine = parts.engine
    with explained(parts.directory):
        known = with_reference(small, io.StringIO()).splits.train
        batch = COLLATE.get(parts.config.method.stage, collate)(known, pad_id=pad_token_id(parts.tokenizer))
        batch = prepared(engine, algorithm, batch)
        seconds = _timed(partial(engine.accumulate, algorithm, batch))
        if seconds < _WARM_SECONDS:
            engine.optimizer.zero_grad(set_to_none=True)
            engine.pending()
            seconds = _timed(partial(engine.accumulate, algorithm, batch))
        stats = engine.optimizer_step()
    tokens = int(batch.attention_mask.sum())
    yield _step(parts, stats, tokens, seconds)
    yield _duration(parts, seconds / tokens)


def _longest(parts: Parts) -> list[Any]:
    """The longest rows, as many as one micro-batch holds and at least one."""
    train = parts.splits.train
    order = sorted(range(len(train)), key=lambda i: -len(train[i]))
    taken: list[Any] = []
    tokens = 0
    for i in order[: optimizer_rows(parts.config)]:
        tokens += longest_row([train[i]])
        if taken and tokens > parts.engine.max_tokens:
            break
        taken.append(train[i])
    return taken


def _timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _step(parts: Parts, stats: dict[str, float], tokens: int, seconds: float) -> Finding:
    loss, norm = stats["loss"], stats["grad_norm"]
    peak = peak_memory_bytes()
    message = (
        f"forward and backward on the longest batch ({tokens} tokens): {seconds:.2f} s, loss {loss:.3f}, gradient "
        f"norm {norm:.3g}, peak memory {megabytes(peak)}"
    )
    details = {"tokens": tokens, "seconds": seconds, "loss": loss, "grad_norm": norm, "peak_memory_bytes": peak}
    if norm == 0:
        fix = "Nothing would be learned: look at finetuning_type, lora_target and the rows' labels"
        return Finding(level="error", check="step", message=f"{message}: no gradient", fix=fix, details=details)
    roles = parts.assembly.roles
    vocabulary = int(roles.backbone_of(Role.ACTOR).config.get_text_config().vocab_size) if Role.ACTOR in roles else 0
    if parts.config.method.stage in _LANGUAGE and loss > _NEAR_CHANCE * math.log(vocabulary):
        fix = "Right for a model made from nothing; else model and tokenizer do not belong together"
        text = f"{message}: no better than guessing ({math.log(vocabulary):.1f})"
        return Finding(level="warning", check="step", message=text, fix=fix, details=details)
    return Finding(level="ok", check="step", message=message, details=details)


def _duration(parts: Parts, per_token: float) -> Finding:
    """How long the whole run would take at this pace; rows are as long as those looked at."""
    rows = parts.splits.train
    mean = sum(sum(len(s.row) for s in sequences_of(row) if s.label != TWIN) for row in rows) / len(rows)
    per_step = per_token * mean * optimizer_rows(parts.config)
    total = per_step * parts.plan.total
    message = f"about {duration(total)} for {parts.plan.total} steps of {per_step:.2f} s, evaluation aside"
    return Finding(level="ok", check="time", message=message, details={"seconds": total, "seconds_per_step": per_step})


def scores(parts: Parts) -> Iterator[Finding]:
    """What the reward model of stage rm says of pairs before it is trained: numbers, not all the same."""
    rows = sorted(parts.splits.validation or parts.splits.train, key=len)[:32]
    pairs = [(s[0].row, s[-1].row) for s in map(sequences_of, rows)]
    batch = collate([side for pair in pairs for side in pair], pad_token_id(parts.tokenizer)).to(parts.engine.device)
    found = parts.engine.scores(batch).float().cpu()
    yield judged(found[0::2], found[1::2], trained=bool(parts.assembly.stands_on) and _continues(parts.config))


def _continues(config: RunConfig) -> bool:
    return bool(config.model.adapter_name_or_path) and not config.method.create_new_adapter


def judged(better: torch.Tensor, worse: torch.Tensor, *, trained: bool) -> Finding:
    """Whether scores are finite, differ, and are higher where they should be.

    Args:
        better, worse: [P] scores of the two sides of each pair.
        trained: whether the head has learned anything yet.
    """
    both = torch.cat([better, worse])
    if not bool(torch.isfinite(both).all()):
        count = int((~torch.isfinite(both)).sum())
        fix = "The head or the model beneath it is damaged: copy it again, or train it again with a lower learning_rate"
        return Finding(
            level="error", check="scores", message=f"{share(count, len(both))} are no finite number", fix=fix
        )
    spread = float(both.std(correction=0))
    right = int((better > worse).sum())
    message = (
        f"{len(both)} scores from {float(both.min()):.3g} to {float(both.max()):.3g}, the better side higher in "
        f"{share(right, len(better))} pairs"
    )
    details = {"spread": spread, "right": right, "pairs": len(better)}
    if len(both) > 2 and spread <= 1e-6 * max(1.0, float(both.abs().max())):
        fix = "A head that answers one number tells nothing: is it the one that was trained?"
        return Finding(level="error", check="scores", message=f"{message}: all the same", fix=fix, details=details)
    if trained and len(better) >= 8 and right / len(better) < _FEW_RIGHT:
        fix = "Is the order of the pairs, or of the answers, the one it was trained with? Look at template and base"
        return Finding(level="warning", check="scores", message=message, fix=fix, details=details)
    if not trained:
        message += " before training"
    return Finding(level="ok", check="scores", message=message, details=details)
