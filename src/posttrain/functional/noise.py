"""Noise that keeps a model from learning its data by heart."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding_noise(embedded: Tensor, lengths: Tensor, *, alpha: float) -> Tensor:
    """Uniform noise for embeddings, weaker the longer the row and the wider the model.

        ε = α / √(L d) · u,   u uniform in [−1, 1]

    Paper: Jain et al., 2023, algorithm 1 (arXiv:2310.05914).

    Args:
        embedded: [B, T, d].
        lengths: [B, T], L of the row that each token belongs to, at least 1.
        alpha: α; the paper uses 5, 10 and 15.

    Returns:
        [B, T, d], drawn from torch's global generator.
    """
    bound = alpha / (lengths * embedded.shape[-1]).float().sqrt()  # L d is beyond float16
    return (torch.rand_like(embedded) * 2 - 1) * bound.to(embedded.dtype)[..., None]
