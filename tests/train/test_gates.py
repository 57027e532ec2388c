"""Step-0 gates: what passes, what stops the run, and what it says."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.errors import RunError
from posttrain.train.gates import check_kl, check_ratio
from posttrain.types import RolloutBatch


@pytest.fixture
def rollout(make_batch):
    """Two completions of 2 and 3 tokens; the reference differs by ``gap`` on every token."""

    def make(gap, outside=0.0):
        batch = make_batch([[5, 6, 7], [8, 9, 10, 11]], starts=[1, 1])
        logprobs = torch.full((2, 4), -1.0)
        reference = torch.where(batch.loss_mask, logprobs - gap, logprobs - outside)
        columns = vars(batch) | {"logprobs": logprobs, "ended": torch.ones(2, dtype=torch.bool)}
        return RolloutBatch(**columns, ref_logprobs=reference)

    return make


def test_kl_gate(rollout) -> None:
    check_kl(rollout(0.0), 1e-3)
    check_kl(rollout(9e-4), 1e-3)
    check_kl(rollout(0.0).with_columns(ref_logprobs=None), 1e-3)
    for gap in (2e-3, -2e-3):
        with pytest.raises(RunError, match=r"actor already differs from its reference.*0\.002 nats.*allowed 0\.001"):
            check_kl(rollout(gap), 1e-3)


def test_kl_gate_is_not_fooled_by_signs(rollout) -> None:
    """Differences that cancel in the mean KL are differences all the same."""
    batch = rollout(0.0)
    signs = torch.tensor([[0.0, 0.5, -0.5, 0.0], [0.0, 0.5, -0.5, 0.0]])
    with pytest.raises(RunError):
        check_kl(batch.with_columns(ref_logprobs=batch.ref_logprobs + signs), 1e-3)


def test_kl_gate_stops_at_nan(rollout) -> None:
    with pytest.raises(RunError):
        check_kl(rollout(math.nan), 1e-3)


@pytest.mark.parametrize(
    ("metrics", "passes"),
    [
        ({"ratio": 1.0, "approx_kl": 0.0}, True),
        ({"ratio": 1.0009, "approx_kl": 1e-6}, True),
        ({}, True),
        ({"ratio": 1.01, "approx_kl": 0.0}, False),
        ({"ratio": 0.99, "approx_kl": 0.0}, False),
        ({"ratio": 1.0, "approx_kl": 0.01}, False),
        ({"ratio": math.nan, "approx_kl": 0.0}, False),
    ],
)
def test_ratio_gate(metrics, passes) -> None:
    if passes:
        check_ratio(metrics, 1e-3)
        return
    with pytest.raises(RunError, match=r"On the first minibatch the policy ratio is .*[Dd]ropout"):
        check_ratio(metrics, 1e-3)
