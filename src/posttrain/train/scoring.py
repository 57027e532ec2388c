"""An iteration's rewards and what its roles say, side by side where the reward needs no model of the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from posttrain.engine import Engine
from posttrain.rewards import Begun, EnsembleReward, Reward, WeightedReward, begin
from posttrain.types import Role, RolloutBatch


def scored(reward: Reward, batch: RolloutBatch) -> RolloutBatch:
    """The batch with its rewards, and with their parts where they are a sum."""
    return _with_rewards(reward, begin(reward, batch), batch)


def judged(
    engine: Engine,
    reward: Reward,
    consults: tuple[Role, ...],
    batch: RolloutBatch,
    on_rewards: Callable[[RolloutBatch], None] | None = None,
) -> tuple[RolloutBatch, float]:
    """The batch with rewards and with what the roles say, the rewards begun first and waited for last.

    Args:
        engine: asks the roles. reward: of batches that have none yet.
        consults: the roles; the critic is not asked where the sampler recorded its values.
        batch: the sampler's columns filled.
        on_rewards: called with the rewards before the critic is asked, whose head it may change; None in iterations in
            which nothing changes it.

    Returns:
        (the batch, the seconds in which nothing but the reward was computed).
    """
    asked = tuple(role for role in consults if role is not Role.CRITIC or batch.values is None)
    later = tuple(role for role in asked if role is Role.CRITIC) if on_rewards else ()
    seconds, started = 0.0, time.perf_counter()
    begun = begin(reward, batch) if batch.rewards is None else None
    seconds += time.perf_counter() - started
    try:
        batch = engine.consult(tuple(role for role in asked if role not in later), batch)
    except BaseException:
        if begun is not None:
            begun.give_up()
        raise
    if begun is not None:
        started = time.perf_counter()
        batch = _with_rewards(reward, begun, batch)
        seconds += time.perf_counter() - started
    if on_rewards is not None:
        on_rewards(batch)
    return engine.consult(later, batch), seconds


def _with_rewards(reward: Reward, begun: Begun, batch: RolloutBatch) -> RolloutBatch:
    rewards = begun.rewards()
    parts = dict(reward.last) if isinstance(reward, WeightedReward | EnsembleReward) else None
    return batch.with_columns(rewards=rewards, reward_parts=parts)
