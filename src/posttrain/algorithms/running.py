"""Statistics of the rewards that a run has seen so far, kept in the algorithm's state."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from posttrain.types import AlgorithmState


def with_rewards(state: AlgorithmState, rewards: Tensor) -> AlgorithmState:
    """The state after these rewards: count, mean and sum of squared deviations, merged pairwise.

        n = n_a + n_b        μ = μ_a + Δ n_b / n        M₂ = M₂a + M₂b + Δ² n_a n_b / n        Δ = μ_b − μ_a

    Source: Chan, Golub and LeVeque, 1979, the parallel form of Welford's update; exact to rounding for any split.

    Args:
        state: what was seen before.
        rewards: [B], at least one.
    """
    new = rewards.double()
    mean, count = float(new.mean()), float(len(new))
    squares = float((new - mean).square().sum())
    total, delta = state.reward_count + count, mean - state.reward_mean
    return dataclasses.replace(
        state,
        reward_count=total,
        reward_mean=state.reward_mean + delta * count / total,
        reward_m2=state.reward_m2 + squares + delta**2 * state.reward_count * count / total,
    )


def reward_std(state: AlgorithmState) -> float:
    """Unbiased standard deviation of the rewards seen so far; 0 before the second one."""
    return float((state.reward_m2 / max(state.reward_count - 1, 1)) ** 0.5)
