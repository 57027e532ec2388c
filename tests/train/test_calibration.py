"""A critic that starts from the reward head, on the scale of a reward that the head is only a part of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from posttrain.algorithms import PPO
from posttrain.models.heads import ScalarHead
from posttrain.rewards import WeightedReward
from posttrain.train.stages import OnlineStage
from posttrain.types import RolloutBatch

HIDDEN = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [-1.0, 3.0]])


def rollout(size):
    ids, mask = torch.zeros(size, 1, dtype=torch.long), torch.ones(size, 1, dtype=torch.bool)
    return RolloutBatch(
        input_ids=ids, attention_mask=mask, loss_mask=mask, logprobs=torch.zeros(size, 1), ended=mask[:, 0]
    )


@pytest.mark.parametrize("normalizes", [True, False])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("alone", [True, False])
def test_the_critic_starts_at_what_the_reward_is_where_the_other_parts_are_constant(normalizes, norm, alone) -> None:
    head = ScalarHead(2, "value")
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.5, -1.0]]))
        head.bias.fill_(0.25)
    scores = head(HIDDEN).detach()
    parts = {"reward_model": lambda batch: scores, "length": lambda batch: torch.full((4,), -3.0)}
    reward = WeightedReward(parts, (2.0, 5.0), norm=norm)
    batch = rollout(4)
    if alone:
        batch = batch.with_columns(rewards=scores)
    else:
        batch = batch.with_columns(rewards=reward(batch), reward_parts=reward.last)
    assembly = SimpleNamespace(critic_from_reward=True, roles=SimpleNamespace(head=lambda kind: head))
    stage = SimpleNamespace(
        _parts=SimpleNamespace(assembly=assembly),
        _algorithm=PPO(normalize_rewards=normalizes),
        run=SimpleNamespace(reward=reward),
    )
    OnlineStage._calibrate_critic(stage, batch)
    expected = batch.rewards
    if normalizes:
        expected = (expected - expected.mean()) / expected.std()
    torch.testing.assert_close(head(HIDDEN).detach(), expected, atol=1e-5, rtol=1e-5)
