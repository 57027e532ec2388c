from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import ReMax
from posttrain.types import AlgorithmState, RolloutBatch


def credited(batch: RolloutBatch, **settings: Any) -> tuple[Tensor, AlgorithmState]:
    algorithm = ReMax(**{"kl_coef": 0.5, **settings})
    found, state = algorithm.credit(batch, algorithm.initial_state())
    assert found.advantages is not None
    assert found.returns is found.trains is None
    return found.advantages, state


def test_credit_by_hand(siblings) -> None:
    # rewards 10, -4, 1, 3 less those of the greedy completions 4, 4, 2, 2: 6, -8, -1, 1 on the last tokens;
    # less 0.5 times the KL that is still to come
    found, state = credited(siblings)
    assert found.tolist() == [[0, 5, 5.5, 5.5], [0, -9, 0, 0], [0, -1, -1, 0], [0, 0.5, 0.5, 1]]
    assert state == AlgorithmState(kl_coef=0.5, iterations=1)


def test_the_penalty_in_the_loss_leaves_the_difference(siblings) -> None:
    found, _ = credited(siblings, kl_in="loss")
    assert found.tolist() == [[0, 6, 6, 6], [0, -8, 0, 0], [0, -1, -1, 0], [0, 1, 1, 1]]


def test_what_is_as_good_as_the_greedy_completion_earns_nothing(siblings) -> None:
    """Score and baseline are normalised by the same statistics, which see the score only."""
    equal = siblings.with_columns(baseline_rewards=siblings.rewards)
    for settings in ({}, {"normalize_rewards": True}, {"normalize_rewards": True, "reward_clip": 0.5}):
        assert not credited(equal, kl_in="loss", **settings)[0].any()
    # 10, -4, 1, 3: mean 2.5, squared deviations 101 over 3
    found, state = credited(siblings, kl_in="loss", normalize_rewards=True)
    unit = (101 / 3) ** 0.5
    assert found[:, 1].tolist() == pytest.approx([6 / unit, -8 / unit, -1 / unit, 1 / unit])
    assert (state.reward_count, state.reward_mean, state.reward_m2) == pytest.approx((4, 2.5, 101))


def test_score_and_baseline_are_clipped_each(siblings) -> None:
    # 3, -3, 1, 3 less 3, 3, 2, 2
    found, _ = credited(siblings, kl_in="loss", reward_clip=3.0)
    assert found[:, 1].tolist() == [0, -6, -1, 1]


def test_it_asks_for_the_greedy_completion(siblings) -> None:
    assert ReMax.greedy_baseline
    with pytest.raises(ValueError, match=r"RolloutBatch\.baseline_rewards"):
        credited(dataclasses.replace(siblings, baseline_rewards=None))
    assert torch.equal(credited(siblings, group_size=2)[0], credited(siblings)[0])
