"""Credit: from rewards to advantages, with a critic (GAE), with siblings of the same prompt, or with no baseline."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation over the tokens that the policy emitted.

        δ_t = r_t + γ V_{t+1} − V_t        Â_t = δ_t + γλ Â_{t+1}        R_t = Â_t + V_t

    Here t + 1 is the *next position inside the mask*: a tool's answer in the middle of a completion is no step, it
    neither discounts nor receives credit. The value after the last position inside the mask is 0 (the episode ends).

    Paper: Schulman et al., 2016, eq. 16 (arXiv:1506.02438).

    Args:
        rewards: [B, T] reward for emitting token t.
        values: [B, T] value of the state before token t.
        mask: [B, T] bool, True on tokens that the policy emitted.
        gamma: discount γ.
        lam: λ; 0 is the one-step temporal difference, 1 the Monte-Carlo return minus the value.

    Returns:
        Advantages [B, T] and returns [B, T], 0 outside the mask, not whitened.
    """
    mask = mask.bool()
    rewards = torch.where(mask, rewards, 0.0)
    values = torch.where(mask, values, 0.0)
    columns: list[Tensor] = []
    next_value = next_advantage = torch.zeros_like(values[:, 0]) if values.shape[1] else values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        columns.append(torch.where(here, advantage, 0.0))
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    advantages = torch.stack(columns[::-1], dim=1) if columns else torch.zeros_like(values)  # [B, T]
    return advantages, advantages + values


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """The reward to go: what is still to come from each token on.

        R_t = r_t + γ R_{t+1}

    t + 1 is the next position inside the mask, as in ``gae``, of which this is the case without a critic.

    Papers: Williams, 1992; per token of an answer, with the KL penalty among the rewards: Hu et al., 2025, REINFORCE++
    (arXiv:2501.03262).

    Args:
        rewards: [B, T] reward for emitting token t.
        mask: [B, T] bool, True on tokens that the policy emitted.
        gamma: discount γ.

    Returns:
        [B, T], 0 outside the mask, neither centred nor scaled.
    """
    returns, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)
    return returns


def group_relative(rewards: Tensor, group_size: int, *, scale_by_std: bool) -> Tensor:
    """Reward minus the mean reward of the group, optionally in units of the group's spread.

        Â_i = (r_i − mean(r)) / (std(r) + 1e-4)

    The standard deviation is the unbiased one (n − 1). Without scaling this is the advantage of Dr. GRPO.

    Papers: Shao et al., 2024, GRPO (arXiv:2402.03300); Liu et al., 2025, Dr. GRPO (arXiv:2503.20783).

    Args:
        rewards: [P * G], the G completions of one prompt contiguous.
        group_size: G, at least 2.
        scale_by_std: divide by the group's standard deviation.

    Returns:
        [P * G]; every group sums to 0.

    Raises:
        ValueError: if G < 2 or does not divide the number of rewards.
    """
    groups = _groups(rewards, group_size)  # [P, G]
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale_by_std:
        advantages = advantages / (groups.std(dim=1, keepdim=True) + 1e-4)
    return advantages.reshape(-1)


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """Reward minus the mean reward of the other completions of the same prompt.

        Â_i = r_i − 1/(G−1) Σ_{j≠i} r_j

    Paper: Ahmadian et al., 2024 (arXiv:2402.14740).

    Args:
        rewards: [P * G], the G completions of one prompt contiguous.
        group_size: G, at least 2.

    Returns:
        [P * G]; every group sums to 0.

    Raises:
        ValueError: if G < 2 or does not divide the number of rewards.
    """
    groups = _groups(rewards, group_size)  # [P, G]
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).reshape(-1)


def _groups(rewards: Tensor, group_size: int) -> Tensor:
    if group_size < 2:
        raise ValueError(f"a group needs at least 2 completions to compare, group_size is {group_size}")
    if rewards.dim() != 1 or rewards.shape[0] % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} do not split into groups of {group_size}")
    return rewards.reshape(-1, group_size)
