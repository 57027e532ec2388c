from __future__ import annotations

import pytest
import torch

from posttrain.algorithms import PretrainingLoss
from posttrain.types import Role


def test_the_loss_is_weighed_and_logged_without_its_weight(answers) -> None:
    out, batch = answers([[-1, -2], [-3]])
    term = PretrainingLoss(coef=0.25).loss(Role.ACTOR, out, batch)
    assert term.unit == "token"
    assert term.loss[batch.loss_mask].tolist() == pytest.approx([0.25, 0.5, 0.75])
    assert term.metrics.keys() == {"ptx_loss"}
    assert term.metrics["ptx_loss"][batch.loss_mask].tolist() == [1, 2, 3]
    assert not term.loss[~batch.loss_mask].any()
    assert not term.metrics["ptx_loss"][~batch.loss_mask].any()


def test_the_trained_tokens_rise(answers) -> None:
    out, batch = answers([[-1, -2], [-3]])
    logprobs = out.logprobs.clone().requires_grad_()
    term = PretrainingLoss(coef=0.25).loss(Role.ACTOR, type(out)(logprobs=logprobs), batch)
    assert not term.metrics["ptx_loss"].requires_grad
    (grad,) = torch.autograd.grad(term.loss.sum(), logprobs)
    assert torch.equal(grad, -0.25 * batch.loss_mask)
