from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.functional import clipped_surrogate, clipped_value_loss


def test_surrogate_by_hand() -> None:
    # clip to [0.8, 1.3]; ratio, advantage -> -min(ratio * A, clipped * A)
    #  1.5,  2 -> min( 3.0,  2.6) =  2.6, clipped
    #  1.5, -2 -> min(-3.0, -2.6) = -3.0, not
    #  0.5,  2 -> min( 1.0,  1.6) =  1.0, not
    #  0.5, -2 -> min(-1.0, -1.6) = -1.6, clipped
    #  1.0,  2 -> 2.0, not
    #  1.5,  0 -> 0, not: both objectives are equal
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.0, 1.5]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0, 0.0]], dtype=torch.float64)
    old = torch.full_like(ratio, -1.0)
    loss, clipped = clipped_surrogate(old + ratio.log(), old, advantages, clip_low=0.2, clip_high=0.3)
    assert loss[0].tolist() == pytest.approx([-2.6, 3.0, -1.0, 1.6, -2.0, 0.0])
    assert clipped[0].tolist() == [True, False, False, True, False, False]


def test_surrogate_gradient_is_the_policy_gradient_inside_and_zero_where_clipped() -> None:
    # dL/dlogp = -ratio * A where not clipped, 0 where clipped
    ratio = torch.tensor([[1.5, 1.1, 0.5]], dtype=torch.float64)
    logprobs = ratio.log().requires_grad_()
    advantages = torch.full_like(ratio, 2.0)
    loss, _ = clipped_surrogate(logprobs, torch.zeros_like(ratio), advantages, clip_low=0.2, clip_high=0.2)
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    assert grad[0].tolist() == pytest.approx([0.0, -2.2, -1.0])


def test_surrogate_targets_carry_no_gradient() -> None:
    logprobs, old, advantages = (torch.zeros(1, 2, requires_grad=True) for _ in range(3))
    loss, _ = clipped_surrogate(logprobs, old, advantages + 1, clip_low=0.2, clip_high=0.2)
    grads = torch.autograd.grad(loss.sum(), (logprobs, old, advantages), allow_unused=True)
    assert grads[0] is not None
    assert grads[1] is None
    assert grads[2] is None


def test_value_loss_by_hand() -> None:
    # old 0, clip 0.5. value, return -> plain error², clipped error², half the larger
    #  0.3, 1 -> 0.49, 0.49 -> 0.245
    #  2.0, 1 -> 1.00, (0.5 - 1)² = 0.25 -> 0.5
    #  2.0, 3 -> 1.00, (0.5 - 3)² = 6.25 -> 3.125
    values = torch.tensor([[0.3, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([[1.0, 1.0, 3.0]], dtype=torch.float64)
    loss = clipped_value_loss(values, torch.zeros_like(returns), returns, clip=0.5)
    assert loss[0].tolist() == pytest.approx([0.245, 0.5, 3.125])
    # value - return, value - return, and 0 where the clipped error rules
    (grad,) = torch.autograd.grad(loss.sum(), values)
    assert grad[0].tolist() == pytest.approx([-0.7, 1.0, 0.0])


def test_value_loss_without_clip() -> None:
    values, returns = torch.tensor([[5.0]]), torch.tensor([[1.0]])
    assert clipped_value_loss(values, torch.zeros(1, 1), returns, clip=math.inf).item() == 8.0


@given(seed=st.integers(0, 9999), low=st.floats(0.01, 0.9), high=st.floats(0.01, 2.0))
@settings(deadline=None, max_examples=40)
def test_pessimism(seed: int, low: float, high: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs, old, advantages = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    loss, clipped = clipped_surrogate(logprobs, old, advantages, clip_low=low, clip_high=high)
    ratio = torch.exp(logprobs - old)
    assert (loss >= -ratio * advantages - 1e-12).all()
    outside = torch.where(advantages > 0, ratio > 1 + high, ratio < 1 - low)
    assert torch.equal(clipped, outside)
    value_loss = clipped_value_loss(logprobs, old, advantages, clip=high)
    assert (value_loss >= 0.5 * (logprobs - advantages).square() - 1e-12).all()
    order = torch.randperm(4, generator=generator)
    shuffled, _ = clipped_surrogate(logprobs[order], old[order], advantages[order], clip_low=low, clip_high=high)
    assert torch.equal(shuffled, loss[order])


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(1)
    moving, old, target = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    moving.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, old, target, clip_low=0.2, clip_high=0.3)[0], (moving,)
    )
    assert torch.autograd.gradcheck(lambda x: clipped_value_loss(x, old, target, clip=0.5), (moving,))
