from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.functional import bradley_terry_loss, dpo_loss

KINDS = ("sigmoid", "ipo", "hinge", "robust")


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def four(seed: int, pairs: int = 5) -> tuple[Tensor, ...]:
    return tuple(torch.randn(4, pairs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def test_bradley_terry_by_hand() -> None:
    # -log sigmoid(x) = log(1 + exp(-x)); differences 0, 2, -1, with margin 1: -1, 1, -2
    chosen = torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64)
    rejected = torch.ones(3, dtype=torch.float64)
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx([math.log(2), softplus(-2), softplus(1)])
    with_margin = bradley_terry_loss(chosen, rejected, torch.ones(3, dtype=torch.float64))
    assert with_margin.tolist() == pytest.approx([softplus(1), softplus(-1), softplus(2)])


def test_bradley_terry_survives_large_scores() -> None:
    scores = torch.tensor([1e4, -1e4])
    assert bradley_terry_loss(scores, -scores).tolist() == [0.0, 2e4]


def test_dpo_by_hand() -> None:
    # log-ratios: chosen -10 - -12 = 2, rejected -9 - -8 = -1; h = 3; beta 0.5 -> 1.5
    given_logps = [torch.tensor([x], dtype=torch.float64) for x in (-10.0, -9.0, -12.0, -8.0)]

    def loss(kind: Any, beta: float = 0.5, smoothing: float = 0.0) -> float:
        return dpo_loss(*given_logps, beta=beta, kind=kind, label_smoothing=smoothing).item()

    assert loss("sigmoid") == pytest.approx(softplus(-1.5))
    assert loss("sigmoid", smoothing=0.1) == pytest.approx(0.9 * softplus(-1.5) + 0.1 * softplus(1.5))
    assert loss("robust", smoothing=0.1) == pytest.approx((0.9 * softplus(-1.5) - 0.1 * softplus(1.5)) / 0.8)
    assert loss("hinge") == 0.0
    assert loss("hinge", beta=0.1) == pytest.approx(0.7)
    # 1 / (2 beta) = 1: (3 - 1)²
    assert loss("ipo") == pytest.approx(4.0)


def test_dpo_is_log_two_where_nothing_has_been_learnt() -> None:
    chosen, rejected = torch.randn(2, 4, dtype=torch.float64)
    loss = dpo_loss(chosen, rejected, chosen, rejected, beta=0.3)
    assert loss.tolist() == pytest.approx([math.log(2)] * 4)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 9999), pairs=st.integers(1, 6))
@settings(deadline=None, max_examples=15)
def test_dpo_direction_and_permutation(kind: Any, seed: int, pairs: int) -> None:
    logps = [x.clone().requires_grad_() for x in four(seed, pairs)]
    smoothing = 0.2 if kind == "robust" else 0.0
    loss = dpo_loss(*logps, beta=0.02, kind=kind, label_smoothing=smoothing)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    shuffled = dpo_loss(*(x[order] for x in logps), beta=0.02, kind=kind, label_smoothing=smoothing)
    torch.testing.assert_close(shuffled, loss[order])
    # h stays far below the turning points 1 / beta and 1 / (2 beta): chosen up, rejected down
    chosen, rejected, *_ = torch.autograd.grad(loss.sum(), logps)
    assert (chosen < 0).all()
    torch.testing.assert_close(rejected, -chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_dpo_gradcheck(kind: Any) -> None:
    inputs = tuple(x.clone().requires_grad_() for x in four(7))
    smoothing = 0.1 if kind in ("sigmoid", "robust") else 0.0
    assert torch.autograd.gradcheck(
        lambda *logps: dpo_loss(*logps, beta=0.7, kind=kind, label_smoothing=smoothing), inputs
    )


def test_bradley_terry_gradcheck() -> None:
    chosen, rejected, margin, _ = (x.clone().requires_grad_() for x in four(8))
    assert torch.autograd.gradcheck(bradley_terry_loss, (chosen, rejected))
    assert torch.autograd.gradcheck(bradley_terry_loss, (chosen, rejected, margin))


@pytest.mark.parametrize(
    ("kind", "smoothing", "message"),
    [
        ("tanh", 0.0, "unknown DPO loss"),
        ("hinge", 0.1, "label_smoothing"),
        ("ipo", 0.1, "label_smoothing"),
        ("robust", 0.5, "label_smoothing"),
        ("sigmoid", -0.1, "label_smoothing"),
    ],
)
def test_dpo_refuses_what_it_does_not_have(kind: Any, smoothing: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dpo_loss(*four(0), beta=0.1, kind=kind, label_smoothing=smoothing)
