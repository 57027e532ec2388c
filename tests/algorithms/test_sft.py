from __future__ import annotations

import pytest
import torch

from posttrain.algorithms import SFT
from posttrain.types import Batch, Outputs, Role

BATCH = Batch(
    input_ids=torch.zeros(2, 3, dtype=torch.long),
    attention_mask=torch.ones(2, 3, dtype=torch.bool),
    loss_mask=torch.tensor([[False, True, True], [False, True, False]]),
)


def test_by_hand() -> None:
    # the negative of each trained token's log-probability, 0 elsewhere whatever stands there
    logprobs = torch.tensor([[torch.nan, -1.0, -2.0], [-9.0, -3.0, torch.inf]], requires_grad=True)
    entropy = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 9.0]], requires_grad=True)
    term = SFT().loss(Role.ACTOR, Outputs(logprobs=logprobs, entropy=entropy), BATCH)
    assert term.loss.tolist() == [[0.0, 1.0, 2.0], [0.0, 3.0, 0.0]]
    assert term.unit == "token"
    assert term.weights is None
    assert term.metrics["entropy"].tolist() == [[0.0, 1.0, 2.0], [0.0, 3.0, 0.0]]
    assert not term.metrics["entropy"].requires_grad
    (grad,) = torch.autograd.grad(term.loss.sum(), logprobs)
    assert grad.tolist() == [[0.0, -1.0, -1.0], [0.0, -1.0, 0.0]]


def test_entropy_is_not_needed() -> None:
    assert SFT().loss(Role.ACTOR, Outputs(logprobs=torch.zeros(2, 3)), BATCH).metrics == {}


def test_missing_logprobs_are_named() -> None:
    with pytest.raises(ValueError, match=r"Outputs\.logprobs"):
        SFT().loss(Role.ACTOR, Outputs(), BATCH)


def test_gradcheck() -> None:
    logprobs = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: SFT().loss(Role.ACTOR, Outputs(logprobs=x), BATCH).loss, (logprobs,))


def test_dynamic_fine_tuning_weighs_by_probability() -> None:
    # p = 1/2: loss -p log p = 0.34657; its gradient by log p is -p, since the weight is a constant
    half, quarter = torch.log(torch.tensor(0.5)), torch.log(torch.tensor(0.25))
    logprobs = torch.tensor([[torch.nan, half, quarter], [0.0, half, 0.0]], requires_grad=True)
    term = SFT(use_dft_loss=True).loss(Role.ACTOR, Outputs(logprobs=logprobs), BATCH)
    expected = torch.tensor([[0.0, -0.5 * half, -0.25 * quarter], [0.0, -0.5 * half, 0.0]])
    torch.testing.assert_close(term.loss, expected)
    torch.testing.assert_close(term.metrics["nll"][0, 1:], -logprobs[0, 1:].detach())
    (grad,) = torch.autograd.grad(term.loss.sum(), logprobs)
    torch.testing.assert_close(grad, torch.tensor([[0.0, -0.5, -0.25], [0.0, -0.5, 0.0]]))
