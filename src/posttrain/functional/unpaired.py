"""Losses over single answers that somebody found good or bad."""

from __future__ import annotations

import torch
from torch import Tensor


def kto_loss(
    logps: Tensor,
    ref_logps: Tensor,
    desirable_mask: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """How far an answer falls short of being a gain (good answers) or a loss (bad ones) against the reference point.

        h = log π(y) − log π_ref(y)        L = λ_D σ(−β (h − z)) where desirable, λ_U σ(−β (z − h)) elsewhere

    Paper: Ethayarajh et al., 2024, eq. 7 (arXiv:2402.01306), whose λ_y − λ_y σ(x) is written λ_y σ(−x); z: ``kto_kl``.

    Args:
        logps: [N] log-probability of the answer, summed over its tokens.
        ref_logps: [N] under the reference.
        desirable_mask: [N] bool, True on good answers.
        kl: z, scalar or [N]; carries no gradient.
        beta: β, how fast the value of a gain saturates.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.

    Returns:
        [N], between 0 and the weight.
    """
    beyond = beta * (logps - ref_logps - kl.detach())  # [N]
    good = desirable_weight * torch.sigmoid(-beyond)
    bad = undesirable_weight * torch.sigmoid(beyond)
    return torch.where(desirable_mask.bool(), good, bad)


def kto_kl(mismatched_logps: Tensor, ref_mismatched_logps: Tensor) -> Tensor:
    """The reference point of KTO: KL(π ‖ π_ref), estimated on prompts with the answers of other prompts.

        z = max(0, mean(log π(y') − log π_ref(y')))

    Paper: Ethayarajh et al., 2024 (arXiv:2402.01306).

    Args:
        mismatched_logps: [N] log-probability of each mismatched answer, summed over its tokens.
        ref_mismatched_logps: [N] under the reference.

    Returns:
        Scalar, never negative, without gradient; 0 of no rows.
    """
    ratios = (mismatched_logps - ref_mismatched_logps).detach()
    return (ratios.sum() / max(1, ratios.numel())).clamp(min=0)
