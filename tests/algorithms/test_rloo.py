from __future__ import annotations

import pytest
import torch

from posttrain.algorithms import RLOO
from posttrain.functional import masked_mean, masked_variance
from posttrain.types import AlgorithmState, RolloutBatch

PAIRS = RLOO(kl_coef=0.5, group_size=2)


def advantages(algorithm: RLOO, batch: RolloutBatch) -> torch.Tensor:
    found = algorithm.credit(batch, algorithm.initial_state())[0].advantages
    assert found is not None
    return found


def test_credit_by_hand(siblings) -> None:
    # rewards less 0.5 KL: 9, -5, 1, 2.5; less that of the other completion of the same prompt
    found, state = PAIRS.credit(siblings, PAIRS.initial_state())
    assert found.advantages.tolist() == [[0, 14, 14, 14], [0, -14, 0, 0], [0, -1.5, -1.5, 0], [0, 1.5, 1.5, 1.5]]
    assert found.returns is None
    assert found.trains is None
    assert state == AlgorithmState(kl_coef=0.5, iterations=1)


def test_one_group_of_four_by_hand(siblings) -> None:
    # raw rewards 10, -4, 1, 3: less a third of the sum of the others: 10 - 0, -4 - 14/3, 1 - 3, 3 - 7/3
    found = advantages(RLOO(kl_coef=0.0, group_size=4), siblings)
    assert found[:, 1].tolist() == pytest.approx([10, -4 - 14 / 3, -2, 3 - 7 / 3])


def test_the_penalty_in_the_loss_leaves_the_reward_alone(siblings) -> None:
    found = advantages(RLOO(kl_coef=0.5, group_size=2, kl_in="loss"), siblings)
    assert found[:, 1].tolist() == [14, -14, -2, 2]


def test_rewards_are_normalised_and_clipped_before_they_are_compared(siblings) -> None:
    found = advantages(RLOO(kl_coef=0.0, group_size=2, reward_clip=2.0), siblings)
    assert found[:, 1].tolist() == [4, -4, -1, 1]
    # 10, -4, 1, 3: mean 2.5, squared deviations 101 over 3
    unit = (101 / 3) ** 0.5
    algorithm = RLOO(kl_coef=0.0, group_size=2, normalize_rewards=True)
    credited, state = algorithm.credit(siblings, algorithm.initial_state())
    assert credited.advantages[:, 1].tolist() == pytest.approx([14 / unit, -14 / unit, -2 / unit, 2 / unit])
    assert (state.reward_count, state.reward_mean) == (4, 2.5)


def test_whitening_counts_tokens(siblings) -> None:
    mask = siblings.loss_mask
    found = advantages(RLOO(kl_coef=0.5, group_size=2, whiten_advantages=True), siblings)
    assert masked_mean(found, mask).item() == pytest.approx(0)
    assert masked_variance(found, mask).item() == pytest.approx(1)
    assert not found[~mask].any()
    # an affine map of the plain ones, so that they keep their order and distances
    plain = advantages(PAIRS, siblings)
    ratio = (found[0, 1] - found[1, 1]) / (plain[0, 1] - plain[1, 1])
    torch.testing.assert_close(found[mask] - found[1, 1], ratio * (plain[mask] - plain[1, 1]))


def test_a_lone_completion_has_nothing_to_be_compared_with(siblings) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        advantages(RLOO(group_size=1), siblings)
