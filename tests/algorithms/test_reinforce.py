from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import Reinforce
from posttrain.functional import whiten
from posttrain.types import AlgorithmState, RolloutBatch


def credited(batch: RolloutBatch, **settings: Any) -> Tensor:
    algorithm = Reinforce(**{"kl_coef": 0.5, "group_size": 2, **settings})
    found, state = algorithm.credit(batch, algorithm.initial_state())
    assert found.advantages is not None
    assert found.returns is found.trains is None
    assert state == AlgorithmState(kl_coef=0.5, iterations=1)
    return found.advantages


@pytest.mark.parametrize(
    ("settings", "returns"),
    [
        # rewards of tokens: (-0.5, 0, 9.5), (-5), (0, 1), (0, -0.5, 3); sums to come
        ({}, [[0, 9, 9.5, 9.5], [0, -5, 0, 0], [0, 1, 1, 0], [0, 2.5, 2.5, 3]]),
        ({"gamma": 0.5}, [[0, 1.875, 4.75, 9.5], [0, -5, 0, 0], [0, 0.5, 1, 0], [0, 0.5, 1, 3]]),
        # scores less the mean of their prompt: 7, -7, -1, 1; the penalty as before
        ({"baseline": "group"}, [[0, 6, 6.5, 6.5], [0, -8, 0, 0], [0, -1, -1, 0], [0, 0.5, 0.5, 1]]),
        ({"baseline": "group", "kl_in": "loss"}, [[0, 7, 7, 7], [0, -7, 0, 0], [0, -1, -1, 0], [0, 1, 1, 1]]),
        ({"kl_in": "loss"}, [[0, 10, 10, 10], [0, -4, 0, 0], [0, 1, 1, 0], [0, 3, 3, 3]]),
    ],
)
def test_credit_by_hand(siblings, settings, returns) -> None:
    mask = siblings.loss_mask
    found = credited(siblings, **settings)
    torch.testing.assert_close(found, whiten(torch.tensor(returns, dtype=torch.float64), mask))
    kept = found[mask]
    assert kept.mean().item() == pytest.approx(0)
    assert kept.var().item() == pytest.approx(1)
    assert not found[~mask].any()


def test_only_the_group_baseline_looks_at_siblings(siblings) -> None:
    """Both prompts raised by an amount of its own: siblings differ as before, the batch does not."""
    raised = siblings.with_columns(rewards=siblings.rewards + torch.tensor([5.0, 5.0, -1.0, -1.0]))
    torch.testing.assert_close(credited(raised, baseline="group"), credited(siblings, baseline="group"))
    assert (credited(raised) - credited(siblings)).abs().max() > 0.1
    with pytest.raises(ValueError, match="at least 2"):
        credited(siblings, baseline="group", group_size=1)
    torch.testing.assert_close(credited(siblings, group_size=1), credited(siblings))
