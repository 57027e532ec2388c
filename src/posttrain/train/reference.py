"""What the reference of an offline preference stage says: measured once, before anything trains, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from posttrain.config import is_online
from posttrain.data.batches import collate
from posttrain.data.encode import EncodedPair
from posttrain.data.stream import RowStream
from posttrain.data.template import EncodedRow, pad_token_id
from posttrain.models.assemble_reference import has_reference_model, reference_roles
from posttrain.models.quantize import quantization
from posttrain.train.parts import Parts, make_algorithm
from posttrain.train.progress import Progress
from posttrain.train.reference_cache import keep, keep_shared, kept, kept_shared, shared_place
from posttrain.types import Batch, Role

FILE = "reference_logps.safetensors"
_SEQUENCES_AT_ONCE = 64
_ROWS_AT_ONCE = 4  # of a reference model of its own: two pairs


def with_reference(parts: Parts, stream: TextIO) -> Parts:
    """The parts with ``ref_logps`` in every row, where the algorithm asks for a reference.

    The policy gives them before it trains: it is its own reference, so no second model is ever in memory, whichever
    weights train. A ``ref_model`` gives them instead, and leaves again. They are kept in the run directory for a run
    that is resumed, and where that pays for all later runs on the same rows and weights.

    Args:
        parts: the engine before its first step, and before a checkpoint is read into it.
        stream: where progress is shown.
    """
    config, splits = parts.config, parts.splits
    if is_online(config.method.stage) or Role.REFERENCE not in make_algorithm(config).consults:
        return parts
    train: Any = splits.train
    count = parts.plan.total * parts.rows_per_step if isinstance(train, RowStream) else len(train)

    def rows() -> Iterator[Any]:
        return chain(train.first(count) if isinstance(train, RowStream) else train, splits.validation)

    logps = _logps(parts, rows, count + len(splits.validation), stream)
    values = logps.tolist()
    pairs = list(zip(values[0::2], values[1::2], strict=True))
    validation = _said(splits.validation, pairs[count:])
    said: Any = train.with_ref_logps(pairs[:count]) if isinstance(train, RowStream) else _said(train, pairs[:count])
    return replace(parts, splits=replace(splits, train=said, validation=validation))


def _logps(parts: Parts, rows: Callable[[], Iterator[Any]], count: int, stream: TextIO) -> Tensor:
    """[2 R] what the reference says of ``count`` rows: kept by this run or another one, else measured now."""
    place = parts.directory.path / FILE if parts.config.preference.cache_ref_logps else None
    ask, identity, model = _asked(parts)
    num_tokens = 0

    def texts() -> Iterator[EncodedRow]:
        nonlocal num_tokens
        for text in (text for row in rows() for text in _sequences(row)):
            num_tokens += len(text)
            yield text

    of_rows = content_hash(texts(), "")
    key = hashlib.sha256(f"{identity} {of_rows}".encode()).hexdigest()
    if parts.engine.processes.size > 1:  # on several machines the files of one may be missing on another
        logps = _measured(parts, rows(), count, ask, stream)
        if place is not None and parts.engine.processes.is_first:
            parts.directory.write_file(FILE, lambda path: keep(path, logps, key))
        return logps
    found = kept(place, key)
    if found is not None:
        return found
    shared = None if place is None else shared_place(model, of_rows, num_tokens, _how(parts))
    found = kept_shared(shared)
    if found is None:
        found = _measured(parts, rows(), count, ask, stream)
        problem = None if shared is None else keep_shared(shared, found)
        if problem:
            print(f"posttrain: what the reference says is not kept for other runs: {problem}", file=stream)
    else:
        print(f"posttrain: what the reference says of {count} rows is taken from {shared}", file=stream)
    if place is not None:
        logps = found
        parts.directory.write_file(FILE, lambda path: keep(path, logps, key))
    return found


def _how(parts: Parts) -> tuple[object, ...]:
    """What decides about the last bits: a run that finds what another one kept goes on with those it would measure."""
    form = quantization(parts.engine.roles.backbone_of(Role.ACTOR))
    return parts.engine.device.type, parts.engine.max_tokens, torch.get_num_threads(), form


def _said(rows: Iterable[Any], pairs: Iterable[tuple[float, float]]) -> list[Any]:
    return [replace(row, ref_logps=pair) for row, pair in zip(rows, pairs, strict=True)]


def _asked(parts: Parts) -> tuple[Callable[[Batch], Tensor], str, nn.Module]:
    """Who gives the log-probabilities [B] of a batch, a name for its weights, and the model that holds them."""
    if not has_reference_model(parts.config):
        return parts.engine.sequence_logps, _identity(parts), parts.engine.roles
    roles, identity = reference_roles(parts.config)

    def answers(batch: Batch) -> Tensor:
        rows = torch.arange(len(batch)).split(_ROWS_AT_ONCE)
        with torch.no_grad():
            pieces = [batch.rows(some).to(parts.engine.device) for some in rows]
            return torch.cat([roles(piece, (Role.REFERENCE,)).logprobs.sum(dim=1) for piece in pieces])

    return answers, identity, roles


def _measured(parts: Parts, rows: Iterator[Any], count: int, ask: Callable[[Batch], Tensor], stream: TextIO) -> Tensor:
    """[2 R] log-probabilities of both sequences of each row under the reference."""
    pad, found = pad_token_id(parts.tokenizer), []
    with Progress(count, "reference", parts.config.train.disable_tqdm, stream=stream) as progress:
        while some := [text for row in islice(rows, _SEQUENCES_AT_ONCE // 2) for text in _sequences(row)]:
            found.append(ask(collate(some, pad)).cpu().float())
            progress.update(len(some) // 2)
    return torch.cat(found)


def _identity(parts: Parts) -> str:
    """The weights that the policy starts from: backbone, adapters beneath, the adapter that it continues."""
    lineage = parts.assembly.lineage
    digest = hashlib.sha256(lineage.base.fingerprint.encode())
    for parent in lineage.parents:
        digest.update(parent.fingerprint.encode())
    digest.update(repr(quantization(parts.engine.roles.backbone_of(Role.ACTOR))).encode())
    if parts.assembly.own is not None:
        for name, weight in sorted(parts.engine.roles.parameters_of(Role.ACTOR).items()):
            digest.update(name.encode() + weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def content_hash(rows: Iterable[EncodedRow], model: str) -> str:
    """What the log-probabilities depend on: the weights, and every token with whether it counts."""
    digest = hashlib.sha256(model.encode())
    for row in rows:
        digest.update(json.dumps([row.input_ids, [int(counts) for counts in row.loss_mask]]).encode())
    return digest.hexdigest()


def _sequences(row: Any) -> tuple[EncodedRow, EncodedRow]:
    return (row.chosen, row.rejected) if isinstance(row, EncodedPair) else (row.row, row.mismatched)
