from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.functional import kto_kl, kto_loss

GOOD = torch.tensor([True, False, True, False])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logps(seed: int) -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return first, second


def test_kto_by_hand() -> None:
    # h = 3, 3, -1, -1; z = 1; beta 0.5: good 1 - sigmoid(0.5 (h - z)), bad 1 - sigmoid(0.5 (z - h))
    policy = torch.tensor([-5.0, -6.0, -5.0, -7.0], dtype=torch.float64)
    reference = torch.tensor([-8.0, -9.0, -4.0, -6.0], dtype=torch.float64)
    kl = torch.tensor(1.0, dtype=torch.float64)
    loss = kto_loss(policy, reference, GOOD, kl, beta=0.5)
    assert loss.tolist() == pytest.approx([1 - sigmoid(1), 1 - sigmoid(-1), 1 - sigmoid(-1), 1 - sigmoid(1)])
    weighed = kto_loss(policy, reference, GOOD, kl, beta=0.5, desirable_weight=2.0, undesirable_weight=0.5)
    assert weighed.tolist() == pytest.approx((loss * torch.tensor([2.0, 0.5, 2.0, 0.5])).tolist())
    # a reference point for every row
    each = kto_loss(policy, reference, GOOD, torch.tensor([3.0, 3.0, -1.0, -1.0]), beta=0.5)
    assert each.tolist() == pytest.approx([0.5] * 4)


def test_kl_by_hand() -> None:
    # differences 1, 2, -0.5: mean 5/6; the other way round it is negative, so 0; and 0 of no rows
    policy, reference = torch.tensor([-1.0, -2.0, -3.5]), torch.tensor([-2.0, -4.0, -3.0])
    assert kto_kl(policy, reference).item() == pytest.approx(5 / 6)
    assert kto_kl(reference, policy).item() == 0.0
    assert kto_kl(torch.zeros(0), torch.zeros(0)).item() == 0.0


@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=25)
def test_direction_bounds_and_permutation(seed: int) -> None:
    policy, reference = logps(seed)
    policy.requires_grad_()
    kl = kto_kl(policy + 1, reference)
    assert not kl.requires_grad
    loss = kto_loss(policy, reference, GOOD, kl, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    assert (loss > 0).all()
    assert (loss < torch.where(GOOD, 1.5, 0.7)).all()
    # good answers up, bad ones down
    (grad,) = torch.autograd.grad(loss.sum(), policy)
    assert (grad[GOOD] < 0).all()
    assert (grad[~GOOD] > 0).all()
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    shuffled = kto_loss(
        policy[order], reference[order], GOOD[order], kl, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7
    )
    torch.testing.assert_close(shuffled, loss[order])


def test_the_reference_point_carries_no_gradient() -> None:
    policy, reference = logps(1)
    kl = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    loss = kto_loss(policy.requires_grad_(), reference, GOOD, kl, beta=0.3)
    assert torch.autograd.grad(loss.sum(), (policy, kl), allow_unused=True)[1] is None


def test_gradcheck() -> None:
    policy, reference = (x.requires_grad_() for x in logps(2))
    kl = torch.tensor(0.4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p, r: kto_loss(p, r, GOOD, kl, beta=0.7), (policy, reference))
