"""The two losses of PPO, per token and unreduced."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """The pessimistic one of the plain and the clipped policy objective, as a loss.

        ρ_t = π(y_t) / π_old(y_t)        L_t = −min(ρ_t Â_t, clip(ρ_t, 1 − clip_low, 1 + clip_high) Â_t)

    Paper: Schulman et al., 2017, eq. 7 (arXiv:1707.06347). Two distances instead of one ε: clip_low = clip_high = ε is
    the paper's loss, clip_high > clip_low the "clip-higher" of DAPO (Yu et al., 2025, arXiv:2503.14476).

    Args:
        logprobs: [B, T] under the policy that is trained.
        old_logprobs: [B, T] under the policy that sampled; carries no gradient.
        advantages: [B, T]; carries no gradient.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.

    Returns:
        The loss [B, T], and a bool mask [B, T], True where the clipped objective is the smaller one: there the token
        has no gradient any more. Masking is the caller's.
    """
    ratio = torch.exp(logprobs - old_logprobs.detach())
    advantages = advantages.detach()
    plain = ratio * advantages
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -torch.minimum(plain, bounded), bounded < plain


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """The larger one of the plain and the clipped squared error of the critic.

        V^clip_t = V_old,t + clamp(V_t − V_old,t, −clip, clip)
        L_t = ½ max((V_t − R_t)², (V^clip_t − R_t)²)

    Source: OpenAI's PPO implementations; the factor ½ as in lm-human-preferences (Ziegler et al., 2019,
    arXiv:1909.08593). Note what clipping means: a value that is wrong by much more than ``clip`` moves only as long as
    the plain error is the larger one.

    Args:
        values: [B, T] of the critic that is trained.
        old_values: [B, T] of the critic before the update; carries no gradient.
        returns: [B, T] targets; carry no gradient.
        clip: how far a value may move in one batch of experience; infinity switches clipping off.

    Returns:
        [B, T], never negative. Masking is the caller's.
    """
    old_values, returns = old_values.detach(), returns.detach()
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (bounded - returns).square())
