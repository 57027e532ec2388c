from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.functional import (
    bradley_terry_loss,
    cpo_loss,
    dpo_loss,
    odds_ratio_loss,
    ranking_pairs,
    simpo_loss,
)

# exo_pair has no loss without smoothing, robust no reason to be.
SMOOTHING = {"robust": 0.2, "exo_pair": 0.2}
DIFFERENCE = ("sigmoid", "ipo", "hinge", "robust", "exo_pair")
SIDES = ("nca_pair", "sppo_hard", "apo_zero", "apo_down")


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


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
    # divergence of (p, 1 - p), p = sigmoid(1.5), from (0.9, 0.1)
    p = sigmoid(1.5)
    assert loss("exo_pair", smoothing=0.1) == pytest.approx(p * math.log(p / 0.9) + (1 - p) * math.log((1 - p) / 0.1))
    # beta c = 1, beta r = -0.5
    assert loss("nca_pair") == pytest.approx(softplus(-1) + 0.5 * softplus(1) + 0.5 * softplus(-0.5))
    assert loss("apo_zero") == pytest.approx(1 - sigmoid(1) + sigmoid(-0.5))
    assert loss("apo_down") == pytest.approx(sigmoid(1) + 1 - sigmoid(1.5))
    # (2 - 1)² + (-1 + 1)²; with beta 0.25: (2 - 2)² + (-1 + 2)²
    assert loss("sppo_hard") == pytest.approx(1.0)
    assert loss("sppo_hard", beta=0.25) == pytest.approx(1.0)
    assert loss("sppo_hard", beta=0.125) == pytest.approx((2 - 4) ** 2 + (-1 + 4) ** 2)


def test_dpo_is_log_two_where_nothing_has_been_learnt() -> None:
    chosen, rejected = torch.randn(2, 4, dtype=torch.float64)
    loss = dpo_loss(chosen, rejected, chosen, rejected, beta=0.3)
    assert loss.tolist() == pytest.approx([math.log(2)] * 4)


@pytest.mark.parametrize("kind", DIFFERENCE + SIDES)
@given(seed=st.integers(0, 9999), pairs=st.integers(1, 6))
@settings(deadline=None, max_examples=10)
def test_dpo_direction_and_permutation(kind: Any, seed: int, pairs: int) -> None:
    logps = [x.clone().requires_grad_() for x in four(seed, pairs)]
    smoothing = SMOOTHING.get(kind, 0.0)
    loss = dpo_loss(*logps, beta=0.02, kind=kind, label_smoothing=smoothing)
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    shuffled = dpo_loss(*(x[order] for x in logps), beta=0.02, kind=kind, label_smoothing=smoothing)
    torch.testing.assert_close(shuffled, loss[order])
    # both sides stay far below the turning points 1 / beta and 1 / (2 beta): chosen up, rejected down
    chosen, rejected, *_ = torch.autograd.grad(loss.sum(), logps)
    assert (rejected > 0).all()
    if kind == "apo_down":  # chosen down too, or hardly moved, less than rejected
        assert (chosen.abs() < rejected).all()
        return
    assert (chosen < 0).all()
    if kind in DIFFERENCE:
        torch.testing.assert_close(rejected, -chosen)


@pytest.mark.parametrize("kind", DIFFERENCE + SIDES)
def test_dpo_gradcheck(kind: Any) -> None:
    inputs = tuple(x.clone().requires_grad_() for x in four(7))
    smoothing = 0.1 if kind in ("sigmoid", "robust", "exo_pair") else 0.0
    assert torch.autograd.gradcheck(
        lambda *logps: dpo_loss(*logps, beta=0.7, kind=kind, label_smoothing=smoothing), inputs
    )


def test_exo_is_least_where_the_policy_doubts_as_much_as_the_labels() -> None:
    # sigmoid(beta h) = 1 - s at h = log((1 - s) / s) / beta
    h = torch.tensor([math.log(9) / 0.5], dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(1, dtype=torch.float64)
    loss = dpo_loss(h, nothing, nothing, nothing, beta=0.5, kind="exo_pair", label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.autograd.grad(loss.sum(), h)[0].item() == pytest.approx(0.0, abs=1e-12)


@given(seed=st.integers(0, 9999), beta=st.floats(0.05, 3), smoothing=st.floats(0, 0.5))
@settings(deadline=None, max_examples=20)
def test_cpo_is_dpo_with_a_reference_that_has_no_opinion(seed: int, beta: float, smoothing: float) -> None:
    chosen, rejected, anything, _ = four(seed)
    expected = dpo_loss(chosen, rejected, anything, anything, beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(cpo_loss(chosen, rejected, beta=beta, label_smoothing=smoothing), expected)
    expected = dpo_loss(chosen, rejected, anything, anything, beta=beta, kind="hinge")
    torch.testing.assert_close(cpo_loss(chosen, rejected, beta=beta, kind="hinge"), expected)


def test_losses_without_a_reference_by_hand() -> None:
    # log-probabilities log 0.8 and log 0.5: difference log 1.6; odds 4 and 1
    chosen, rejected = (torch.tensor([math.log(p)], dtype=torch.float64) for p in (0.8, 0.5))
    d = math.log(1.6)
    assert cpo_loss(chosen, rejected, beta=2.0).item() == pytest.approx(softplus(-2 * d))
    assert cpo_loss(chosen, rejected, beta=2.0, label_smoothing=0.1).item() == pytest.approx(
        0.9 * softplus(-2 * d) + 0.1 * softplus(2 * d)
    )
    assert cpo_loss(chosen, rejected, beta=2.0, kind="hinge").item() == pytest.approx(1 - 2 * d)
    # the margin is not scaled by beta
    assert simpo_loss(chosen, rejected, beta=2.0, gamma=0.7).item() == pytest.approx(softplus(0.7 - 2 * d))
    # -log sigmoid(log 4 - log 1) = log(1 + 1/4)
    assert odds_ratio_loss(chosen, rejected).item() == pytest.approx(math.log(1.25))
    assert odds_ratio_loss(rejected, chosen).item() == pytest.approx(math.log(5))


def test_odds_survive_certainty_and_improbability() -> None:
    # nearly certain: p = 1 - 1e-6, odds about 1e6 where 1 - exp has lost its digits; odds of e^-200 are e^-200
    near = torch.tensor([-1e-6], requires_grad=True)
    even = torch.tensor([math.log(0.5)])
    loss = odds_ratio_loss(even, near)
    assert loss.item() == pytest.approx(math.log(1e6), rel=1e-5)
    # d log odds / d log p = 1 / (1 - p)
    assert torch.autograd.grad(loss.sum(), near)[0].item() == pytest.approx(1e6, rel=1e-5)
    assert odds_ratio_loss(torch.tensor([-200.0]), even).item() == pytest.approx(200.0)
    # p = 1 on either side
    for chosen, rejected in ((0.0, -1.0), (-1.0, 0.0), (0.0, 0.0)):
        sides = [torch.tensor([x], requires_grad=True) for x in (chosen, rejected)]
        loss = odds_ratio_loss(*sides)
        assert loss.isfinite().all()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss.sum(), sides))


def test_gradcheck_without_a_reference() -> None:
    chosen, rejected, *_ = (-x.abs().add(0.05).requires_grad_() for x in four(9))
    chosen, rejected = (x.detach().requires_grad_() for x in (chosen, rejected))
    assert torch.autograd.gradcheck(odds_ratio_loss, (chosen, rejected))
    assert torch.autograd.gradcheck(lambda c, r: simpo_loss(c, r, beta=2.0, gamma=0.5), (chosen, rejected))
    for kind, smoothing in (("sigmoid", 0.1), ("hinge", 0.0)):
        assert torch.autograd.gradcheck(
            lambda c, r, k=kind, s=smoothing: cpo_loss(c, r, beta=0.7, kind=k, label_smoothing=s), (chosen, rejected)
        )


def test_ranking_pairs_by_hand() -> None:
    # rows 0 > 1 > 2, a lone row 3, 4 > 5
    index, weights = ranking_pairs([3, 1, 2])
    assert index.tolist() == [[0, 1], [0, 2], [1, 2], [4, 5]]
    assert weights.tolist() == pytest.approx([1 / 3] * 3 + [1.0])
    index, weights = ranking_pairs([])
    assert index.shape == (0, 2)
    assert weights.shape == (0,)
    with pytest.raises(ValueError, match="at least one answer"):
        ranking_pairs([2, 0])


@given(sizes=st.lists(st.integers(1, 5), max_size=5))
@settings(deadline=None, max_examples=30)
def test_ranking_pairs_are_all_pairs_of_a_group(sizes: list[int]) -> None:
    index, weights = ranking_pairs(sizes)
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    rows = range(len(groups))
    expected = {(i, j) for i in rows for j in rows if i < j and groups[i] == groups[j]}
    found = [tuple(pair) for pair in index.tolist()]
    assert len(found) == len(expected)
    assert set(found) == expected
    assert index.dtype == torch.int64
    totals = [0.0] * len(sizes)
    for (better, _), weight in zip(found, weights.tolist(), strict=True):
        totals[groups[better]] += weight
    assert totals == pytest.approx([float(size > 1) for size in sizes])


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
        ("exo_pair", 0.0, "above 0 and below 0.5"),
        ("exo_pair", 0.5, "above 0 and below 0.5"),
        ("apo_zero", 0.1, "label_smoothing"),
    ],
)
def test_dpo_refuses_what_it_does_not_have(kind: Any, smoothing: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dpo_loss(*four(0), beta=0.1, kind=kind, label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("kind", "smoothing", "message"), [("ipo", 0.0, "unknown CPO loss"), ("hinge", 0.1, "label_smoothing")]
)
def test_cpo_refuses_what_it_does_not_have(kind: Any, smoothing: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cpo_loss(*four(0)[:2], beta=0.1, kind=kind, label_smoothing=smoothing)
