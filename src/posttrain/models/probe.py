"""A few fixed sequences, and what a model says of them: how an exported folder is compared with its source."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from posttrain.models.forward import answer
from posttrain.models.heads import ScalarHead
from posttrain.types import Batch

_LENGTHS = (24, 17, 9, 6)


def probe_batch(vocab_size: int, *, pad_id: int, ending: int | None = None) -> Batch:
    """Right-padded sequences of different lengths, the same ones for the same arguments.

    Args:
        vocab_size: ids are drawn below it.
        pad_id: fills the padding and occurs nowhere else.
        ending: the last token of the second sequence, where a real text ends with a certain one.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocab_size, (len(_LENGTHS), max(_LENGTHS)), generator=generator)
    ids[ids == pad_id] = (pad_id + 1) % vocab_size
    lengths = torch.tensor(_LENGTHS)
    if ending is not None:
        ids[1, _LENGTHS[1] - 1] = ending
    mask = torch.arange(max(_LENGTHS)) < lengths[:, None]
    loss_mask = mask.clone()
    loss_mask[:, 0] = False
    return Batch(input_ids=ids.masked_fill(~mask, pad_id), attention_mask=mask, loss_mask=loss_mask)


@torch.no_grad()
def plain_logprobs(model: Any, batch: Batch) -> Tensor:
    """[M] log-probability of every token but the first, by the model's own forward, in float32."""
    batch = batch.to(model.device)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits.float()
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    return logprobs[batch.loss_mask[:, 1:]].cpu()


@torch.no_grad()
def own_scores(model: Any, head: ScalarHead, batch: Batch) -> Tensor:
    """[B] scores at the last real token, as training and PPO compute them."""
    batch = batch.to(model.device)
    scores = answer(model, {"score": head.to(model.device)}, batch, wants=("score",)).scores
    assert scores is not None
    return scores.cpu()


@torch.no_grad()
def classifier_scores(model: Any, batch: Batch) -> Tensor:
    """[B] logits of a sequence classifier of transformers, by its own forward."""
    batch = batch.to(model.device)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    return logits.squeeze(-1).float().cpu()


def largest_gap(a: Tensor, b: Tensor) -> float:
    """max |a - b|; infinity where either is not a number."""
    gap = float((a - b).abs().max())
    return gap if gap == gap else float("inf")


def spare_token(candidates: Collection[int | None], taken: Collection[int], vocab_size: int) -> int:
    """The first candidate within the vocabulary that is not ``taken``, else the highest id that is not."""
    for token in candidates:
        if token is not None and 0 <= token < vocab_size and token not in taken:
            return token
    return next(token for token in range(vocab_size - 1, -1, -1) if token not in taken)
