from __future__ import annotations

import math

import pytest
import torch

from posttrain.algorithms import GRPO
from posttrain.types import AlgorithmState, LossTerm, Outputs, Role, RolloutBatch


def per_completion(algorithm: GRPO, batch: RolloutBatch) -> list[float]:
    """The advantage of each completion, after checking that all of its tokens have it and nothing else does."""
    found = algorithm.credit(batch, algorithm.initial_state())[0].advantages
    assert found is not None
    first = found[:, 1]
    assert torch.equal(found, torch.where(batch.loss_mask, first[:, None], 0.0))
    return first.tolist()


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # rewards 10, -4 and 1, 3: 7 on both sides of their mean, and 1; unbiased deviations √98 and √2
        ("group", [7 / (math.sqrt(98) + 1e-4), -7 / (math.sqrt(98) + 1e-4), -1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4)]),
        # of all four: squared deviations 101 over 3
        ("batch", [a / (math.sqrt(101 / 3) + 1e-4) for a in (7, -7, -1, 1)]),
        ("none", [7, -7, -1, 1]),
    ],
)
def test_credit_by_hand(siblings, scale, expected) -> None:
    algorithm = GRPO(group_size=2, scale_rewards=scale)
    assert per_completion(algorithm, siblings) == pytest.approx(expected)
    credited, state = algorithm.credit(siblings, AlgorithmState(kl_coef=0.5, iterations=3))
    assert credited.returns is credited.trains is None
    assert state == AlgorithmState(kl_coef=0.5, iterations=4)


def test_the_penalty_can_stand_in_the_reward(siblings) -> None:
    # by k1 with 0.5: 9, -5 and 1, 2.5
    algorithm = GRPO(group_size=2, scale_rewards="none", kl_in="reward", kl_estimator="k1", kl_coef=0.5)
    assert per_completion(algorithm, siblings) == [7, -7, -0.75, 0.75]


def test_a_group_of_equal_rewards_teaches_nothing(siblings) -> None:
    rewards = torch.tensor([2.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    for scale in ("group", "batch", "none"):
        found = per_completion(GRPO(group_size=2, scale_rewards=scale), siblings.with_columns(rewards=rewards))
        assert found[:2] == [0, 0]
        assert found[2] < 0 < found[3]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_level_of_a_prompts_rewards_does_not_matter(siblings, scale) -> None:
    """An easy prompt and a hard one count the same: only differences between siblings do."""
    algorithm = GRPO(group_size=4, scale_rewards=scale)
    raised = siblings.with_columns(rewards=siblings.rewards + 100)
    assert per_completion(algorithm, raised) == pytest.approx(per_completion(algorithm, siblings))


def loss(algorithm: GRPO, batch: RolloutBatch, shift: float = 0.0) -> LossTerm:
    credited, _ = algorithm.credit(batch, algorithm.initial_state())
    return algorithm.loss(Role.ACTOR, Outputs(logprobs=batch.logprobs + shift), credited)


def test_by_default_every_completion_counts_the_same_and_the_loss_charges_for_the_kl(siblings) -> None:
    # ratio 1: -Â + β mean k3; d of the first (1, 0, 1): e^-1 each
    found = loss(GRPO(group_size=2, scale_rewards="none", kl_coef=0.3), siblings)
    assert found.unit == "sequence"
    k3 = {1: math.exp(-1), 2: math.exp(-2) + 1}
    assert found.loss.tolist() == pytest.approx([-7 + 0.2 * k3[1], 7 + 0.3 * k3[2], 1, -1 + 0.1 * k3[1]])


def test_dr_grpo_by_hand(siblings) -> None:
    # sums over 3, 1, 2, 3 tokens of -7, 7, 1, -1, over a budget of 8
    found = loss(GRPO(group_size=2, scale_rewards="none", loss_average="budget", budget=8, kl_coef=0.0), siblings)
    assert found.unit == "sequence"
    assert found.loss.tolist() == pytest.approx([-21 / 8, 7 / 8, 2 / 8, -3 / 8])


def test_dapo_counts_tokens_and_clips_higher(siblings) -> None:
    # every ratio 1.25: inside 1.28, outside 1.2
    settings = {"group_size": 2, "scale_rewards": "none", "loss_average": "token", "kl_coef": 0.0}
    found = loss(GRPO(**settings, clip_high=0.28), siblings, math.log(1.25))
    assert found.unit == "token"
    assert found.loss[0].tolist() == pytest.approx([0, -8.75, -8.75, -8.75])
    assert loss(GRPO(**settings), siblings, math.log(1.25)).loss[0, 1].item() == pytest.approx(-8.4)


def test_gspo_clips_whole_completions(siblings) -> None:
    settings = {"group_size": 2, "scale_rewards": "none", "kl_coef": 0.0, "importance": "sequence"}
    found = loss(GRPO(**settings, clip=3e-4, clip_high=4e-4), siblings, 1e-3)
    # the good ones stop at 1.0004, the bad ones have their ratio
    ratio = math.exp(1e-3)
    assert found.loss.tolist() == pytest.approx([-7 * 1.0004, 7 * ratio, ratio, -1.0004], rel=1e-9)
    assert found.metrics["clip_fraction"].tolist() == [1, 0, 0, 1]
