"""Means and whitening over the positions that count."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the positions where ``mask`` is True.

        mean = Σ m x / Σ m

    What stands outside the mask, NaN included, has no influence on the value or the gradient.

    Args:
        x: any shape.
        mask: the shape of ``x`` (or broadcastable to it), True on positions that count.
        dim: the dimension that is reduced; None reduces all.

    Returns:
        Scalar, or ``x`` without ``dim``; 0 where the mask is empty.
    """
    mask = mask.bool().expand_as(x)
    kept = torch.where(mask, x, 0.0)
    if dim is None:
        return kept.sum() / mask.sum().clamp(min=1)
    return kept.sum(dim=dim) / mask.sum(dim=dim).clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance over the positions where ``mask`` is True.

        var = Σ m (x − mean)² / (Σ m − 1)

    Args:
        x: any shape.
        mask: the shape of ``x`` (or broadcastable to it), True on positions that count.

    Returns:
        Scalar, never negative; 0 for fewer than two positions.
    """
    mask = mask.bool().expand_as(x)
    centred = torch.where(mask, x - masked_mean(x, mask), 0.0)
    return centred.square().sum() / (mask.sum() - 1).clamp(min=1)


def whiten(x: Tensor, mask: Tensor, *, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Scale to unit variance and, if asked, shift to mean zero, over the positions where ``mask`` is True.

        y = (x − mean) · rsqrt(var + ε)

    With ``shift_mean=False`` the mean is added back, so only the spread changes.

    Args:
        x: any shape.
        mask: the shape of ``x`` (or broadcastable to it), True on positions that count.
        shift_mean: leave the mean at 0.
        eps: added to the variance.

    Returns:
        The shape of ``x``, 0 outside the mask. A lone position has no unbiased variance: it is shifted, not scaled.
    """
    mask = mask.bool().expand_as(x)
    x = torch.where(mask, x, 0.0)  # before any product: its gradient would be 0 · NaN
    mean = masked_mean(x, mask)
    variance = torch.where(mask.sum() > 1, masked_variance(x, mask), 1.0)
    whitened = torch.where(mask, (x - mean) * torch.rsqrt(variance + eps), 0.0)
    if shift_mean:
        return whitened
    return torch.where(mask, whitened + mean, 0.0)
