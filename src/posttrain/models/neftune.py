"""Noise on embeddings while a model trains: NEFTune."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.functional import embedding_noise
from posttrain.models.packing import Packing


def add_noise(model: PreTrainedModel, alpha: float) -> None:
    """From now on the embeddings of a model in training mode carry noise; evaluation and sampling never do.

    Args:
        model: its trunk is run by ``models/forward.trunk``.
        alpha: strength, above 0.
    """
    decoder, lengths = model.get_decoder(), _Lengths()
    decoder.register_forward_pre_hook(lengths.note, with_kwargs=True)

    def noisy(module: Any, args: Any, embedded: Tensor) -> Tensor:
        if not module.training or not torch.is_grad_enabled():
            return embedded
        return embedded + embedding_noise(embedded, lengths.of(embedded), alpha=alpha)

    model.get_input_embeddings().register_forward_hook(noisy)


class _Lengths:
    """How long the row of each token is, noted on the way into the trunk."""

    def __init__(self) -> None:
        self._found: Tensor | None = None

    def note(self, module: Any, args: Any, keywords: dict[str, Any]) -> None:
        plan, mask = keywords.get("plan"), keywords.get("attention_mask")
        if isinstance(plan, Packing):
            self._found = row_lengths(plan)[None].to(plan.input_ids.device)
        else:
            self._found = None if mask is None else mask.sum(dim=1, keepdim=True)

    def of(self, embedded: Tensor) -> Tensor:
        """[B, T] or broadcast to it."""
        if self._found is None:
            return torch.full(embedded.shape[:1], embedded.shape[1], device=embedded.device)[:, None]
        return self._found.expand(embedded.shape[:2])


def row_lengths(plan: Packing) -> Tensor:
    """[N] length of the row that each packed token belongs to; of the longest, where rows share it."""
    lengths = [segment.length for segment in plan.segments]
    totals = [past + length for past, length in zip(plan.past, lengths, strict=True)]
    for number in range(len(totals) - 1, -1, -1):
        before = plan.segments[number].prefix
        if before is not None:
            totals[before] = max(totals[before], totals[number])
    return torch.tensor(totals).repeat_interleave(torch.tensor(lengths))
