"""The losses of a policy and of its critic, per token and unreduced."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.functional.masked import masked_mean


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The pessimistic one of the plain and the clipped policy objective, as a loss.

        ρ_t = π(y_t) / π_old(y_t)        L_t = −min(ρ_t Â_t, clip(ρ_t, 1 − clip_low, 1 + clip_high) Â_t)

    With a dual clip c, where Â_t < 0: L_t = min(L_t, −c Â_t). A ratio that has run away upwards on a bad token makes
    the plain loss arbitrarily large, and its gradient with it; c ends that.

    Papers: Schulman et al., 2017, eq. 7 (arXiv:1707.06347); dual clip: Ye et al., 2020 (arXiv:1912.09729). Two
    distances instead of one ε: clip_low = clip_high = ε is the paper's loss, clip_high > clip_low the "clip-higher" of
    DAPO (Yu et al., 2025, arXiv:2503.14476).

    Args:
        logprobs: [B, T] under the policy that is trained.
        old_logprobs: [B, T] under the policy that sampled; carries no gradient.
        advantages: [B, T]; carries no gradient.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.
        dual_clip: c, above 1; None is no such bound.

    Returns:
        The loss [B, T], and a bool mask [B, T], True where a bound is in force: there the token has no gradient any
        more. Masking is the caller's.

    Raises:
        ValueError: if the dual clip is not above 1.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, where the ratio starts, not {dual_clip}")
    ratio = torch.exp(logprobs - old_logprobs.detach())
    advantages = advantages.detach()
    plain = ratio * advantages
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss, clipped = -torch.minimum(plain, bounded), bounded < plain
    if dual_clip is None:
        return loss, clipped
    most = torch.where(advantages < 0, -dual_clip * advantages, torch.inf)
    return torch.minimum(loss, most), clipped | (most < loss)


def sequence_ratio_logprobs(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, normalize: bool = True) -> Tensor:
    """The logarithm of one importance ratio per sequence, standing on every token, with each token's own gradient.

        log s = 1/|y| Σ_t (log π(y_t) − log π_old(y_t))        log s_t = sg(log s) + log π(y_t) − sg(log π(y_t))

    sg stops the gradient. The ratio is exp of what is returned, which thus takes the place of ``logprobs`` beside old
    log-probabilities of 0: ``clipped_surrogate(sequence_ratio_logprobs(new, old, mask), torch.zeros_like(old), ...)``.
    Whole sequences are clipped then. With one advantage per sequence, value and gradient are those of the loss on s
    itself, whether tokens are averaged per sequence or over the batch.

    Without normalisation s = π(y) / π_old(y), the ratio of the whole sequence taken as one action, and each token's
    gradient is |y| times its own; value and gradient are those of the loss on s where tokens are averaged per sequence.

    Paper: Zheng et al., 2025, GSPO, eq. 7 and the GSPO-token form of eq. 14 (arXiv:2507.18071). Without normalisation:
    the action of Ahmadian et al., 2024 (arXiv:2402.14740).

    Args:
        logprobs: [B, T] under the policy that is trained.
        old_logprobs: [B, T] under the policy that sampled; carries no gradient.
        mask: [B, T] bool, True on tokens that the policy emitted.
        normalize: take the root of order |y|.

    Returns:
        [B, T], equal on all tokens of a sequence; 0 and without gradient outside the mask.
    """
    mask = mask.bool()
    level = masked_mean((logprobs - old_logprobs).detach(), mask, dim=1)[:, None]  # [B, 1]
    logprobs = torch.where(mask, logprobs, 0.0)
    scale = 1 if normalize else mask.sum(dim=1, keepdim=True)  # [B, 1]
    return torch.where(mask, scale * (level + (logprobs - logprobs.detach())), 0.0)


def cispo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """REINFORCE under a truncated importance weight: what is clipped is the weight, so no token loses its gradient.

        ρ_t = π(y_t) / π_old(y_t)        L_t = −sg(clip(ρ_t, 1 − clip_low, 1 + clip_high)) Â_t log π(y_t)

    Paper: MiniMax, 2025, MiniMax-M1, eq. 4 and 5 (arXiv:2506.13585), which bounds the weight from above only:
    clip_low = 1, since no ratio is below 0. TRL's ``epsilon_high`` is that bound itself, 1 + clip_high.

    Args:
        logprobs: [B, T] under the policy that is trained.
        old_logprobs: [B, T] under the policy that sampled; carries no gradient.
        advantages: [B, T]; carries no gradient.
        clip_low: how far the weight may fall below 1; 1 and more is no bound.
        clip_high: how far it may rise above 1.

    Returns:
        The loss [B, T], and a bool mask [B, T], True where the weight was cut. Masking is the caller's.
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages.detach() * logprobs, weight != ratio


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
