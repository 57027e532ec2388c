"""Tables that are cut up, answered piece by piece, and put together again in their order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.types import Batch


@dataclass(frozen=True, kw_only=True)
class Numbered(Batch):
    """A batch that remembers which rows it was cut from. rows_of: [B] int64."""

    rows_of: Tensor


def numbered(batch: Batch) -> Numbered:
    """The sequences of a batch under their numbers."""
    numbers = torch.arange(len(batch), device=batch.input_ids.device)
    return Numbered(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        loss_mask=batch.loss_mask,
        lower_states=batch.lower_states,
        rows_of=numbers,
    )


def widened(column: Tensor | None, batch: Batch) -> Tensor:
    """[b, t] padded on the right to the width of ``batch``."""
    if column is None:
        raise ValueError("the role consulted did not answer: its costume has the wrong head")
    return torch.nn.functional.pad(column, (0, batch.input_ids.shape[1] - column.shape[1]))
