from __future__ import annotations

import pytest
import torch

from posttrain.algorithms.shaped import ShapedRewards, over_tokens
from posttrain.types import AlgorithmState

HALF = ShapedRewards(kl_coef=0.5)


def test_the_penalty_of_a_completion_is_that_of_its_tokens(siblings) -> None:
    # 0.5 times (1, 0, 1), (2), (0, 0), (0, 1, 0); rewards 10, -4, 1, 3
    state = HALF.initial_state()
    scores, _ = HALF.scores(siblings, state)
    assert HALF.token_rewards(scores, siblings, state).tolist() == [
        *([0, -0.5, 0, 9.5], [0, -5, 0, 0], [0, 0, 1, 0], [0, 0, -0.5, 3])
    ]
    assert HALF.sequence_rewards(scores, siblings, state).tolist() == [9, -5, 1, 2.5]


def test_the_penalty_is_by_the_state_and_not_in_the_reward_where_the_loss_has_it(siblings) -> None:
    assert HALF.penalty(siblings, AlgorithmState(kl_coef=2.0)).sum(dim=1).tolist() == [4, 4, 0, 2]
    charged = ShapedRewards(kl_coef=0.5, kl_in="loss")
    assert not charged.penalty(siblings, AlgorithmState(kl_coef=2.0)).any()
    scores, state = charged.scores(siblings, charged.initial_state())
    assert charged.sequence_rewards(scores, siblings, state).tolist() == [10, -4, 1, 3]


def test_a_coefficient_in_the_loss_stays_fixed(siblings) -> None:
    settings = {"kl_coef": 0.5, "kl_target": 0.1, "kl_horizon": 10}
    # KL 5/4 a sequence, far above the target: up by 0.2 x 4 / 10
    assert ShapedRewards(**settings).moved_on(AlgorithmState(kl_coef=0.5), siblings).kl_coef == pytest.approx(0.54)
    moved = ShapedRewards(**settings, kl_in="loss").moved_on(AlgorithmState(kl_coef=0.5), siblings)
    assert moved == AlgorithmState(kl_coef=0.5, iterations=1)


def test_a_target_of_nothing_is_none(siblings) -> None:
    assert ShapedRewards(kl_target=0.0).moved_on(AlgorithmState(kl_coef=0.5), siblings).kl_coef == 0.5


def test_scaled_rewards_are_those_of_the_state(siblings) -> None:
    """Normalised by what has been seen, without being seen: the baseline of ReMax."""
    algorithm = ShapedRewards(normalize_rewards=True, reward_clip=1.5)
    # mean 3, sum of squared deviations 8 over 3 rewards: deviation 2
    state = AlgorithmState(reward_count=3, reward_mean=3.0, reward_m2=8.0)
    assert algorithm.scaled(torch.tensor([5.0, 3.0, -1.0]), state).tolist() == pytest.approx([1.0, 0.0, -1.5])


def test_advantages_stand_on_trained_tokens_only(siblings) -> None:
    filled = over_tokens(torch.tensor([1.0, 2.0, float("nan"), 4.0]), siblings.loss_mask)
    assert filled[[0, 1, 3]].tolist() == [[0, 1, 1, 1], [0, 2, 0, 0], [0, 4, 4, 4]]
    assert filled[2, [0, 3]].tolist() == [0, 0]


def test_a_group_trains_whole() -> None:
    assert ShapedRewards(group_size=6).trained_group == 6
