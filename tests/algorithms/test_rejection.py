from __future__ import annotations

from typing import Any

import pytest
import torch

from posttrain.algorithms import RejectionSampling
from posttrain.types import Outputs, Role, RolloutBatch


def kept(batch: RolloutBatch, **settings: Any) -> list[bool]:
    algorithm = RejectionSampling(**{"group_size": 2, **settings})
    found, state = algorithm.credit(batch, algorithm.initial_state())
    assert found.returns is None
    assert (state.kl_coef, state.iterations) == (algorithm.kl_coef, 1)
    expected = (found.trains[:, None] & batch.loss_mask).to(found.advantages.dtype)
    assert torch.equal(found.advantages, expected)
    return found.trains.tolist()


def test_the_best_of_each_prompt_is_kept(siblings) -> None:
    # rewards 10, -4 and 1, 3
    assert kept(siblings) == [True, False, False, True]
    assert kept(siblings, group_size=4) == [True, False, False, False]
    assert kept(siblings, group_size=1) == [True] * 4


def test_of_equally_good_ones_the_first_is_kept(siblings) -> None:
    equal = siblings.with_columns(rewards=torch.tensor([2.0, 2.0, 0.0, 0.0], dtype=torch.float64))
    assert kept(equal) == [True, False, True, False]


def test_the_threshold_is_on_raw_rewards(siblings) -> None:
    assert kept(siblings, reward_threshold=3.0) == [True, False, False, True]
    assert kept(siblings, reward_threshold=3.1) == [True, False, False, False]
    assert kept(siblings, reward_threshold=11.0) == [False] * 4
    # only the best can pass: -4 and 1 reach -5 too
    assert kept(siblings, reward_threshold=-5.0) == [True, False, False, True]
    # normalised, 3 is 0.09; clipped, 10 is 1
    assert kept(siblings, reward_threshold=3.0, normalize_rewards=True, reward_clip=1.0) == [True, False, False, True]


def test_the_penalty_takes_part_in_the_choice(siblings) -> None:
    # KL 2, 2, 0, 1: 3 - 2.5 against 1
    assert kept(siblings, kl_coef=2.5) == [True, False, True, False]
    assert kept(siblings, kl_coef=2.5, kl_in="loss") == [True, False, False, True]


def test_the_loss_is_that_of_imitation(siblings) -> None:
    algorithm = RejectionSampling(group_size=2)
    batch, _ = algorithm.credit(siblings, algorithm.initial_state())
    mask = batch.loss_mask
    logprobs = torch.where(mask, -2.0, torch.nan).double().requires_grad_()
    entropy = torch.where(mask, 3.0, torch.nan).double()
    term = algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs, entropy=entropy), batch)
    assert term.unit == "token"
    assert torch.equal(term.loss, 2.0 * mask)
    assert torch.equal(term.metrics["entropy"], 3.0 * mask)
    (grad,) = torch.autograd.grad(term.loss.sum(), logprobs)
    assert torch.equal(grad, -1.0 * mask)
    assert algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs), batch).metrics == {}


@pytest.mark.parametrize("group_size", [1, 4])
def test_one_row_of_a_group_trains(group_size) -> None:
    assert RejectionSampling(group_size=group_size).trained_group == 1
