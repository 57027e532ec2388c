"""Columns as algorithms read them: present, and clean outside the mask."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.types import Batch, Outputs


def column(table: Batch | Outputs, name: str) -> Tensor:
    """The column ``name``.

    Raises:
        ValueError: if nobody filled it.
    """
    found = getattr(table, name)
    if found is None:
        raise ValueError(f"the algorithm needs {type(table).__name__}.{name}, which nobody filled")
    return found  # type: ignore[no-any-return]


def masked_column(table: Batch | Outputs, name: str, mask: Tensor) -> Tensor:
    """The column ``name`` [B, T], 0 outside ``mask``; what stood there reaches neither values nor gradients."""
    return torch.where(mask, column(table, name), 0.0)


def at_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """One score per sequence, placed on its last token.

    Args:
        scores: [B].
        mask: [B, T] bool.

    Returns:
        [B, T], ``scores`` at the last True of each row, 0 elsewhere; a row without a True is all 0.
    """
    remaining = mask.flip(1).cumsum(dim=1).flip(1)  # [B, T] trained tokens from here on
    return torch.where(mask & (remaining == 1), scores[:, None], 0.0)
