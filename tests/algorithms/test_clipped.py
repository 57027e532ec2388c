from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.clipped import ClippedPolicy
from posttrain.types import LossTerm, Outputs, Role, RolloutBatch

NAN = math.nan
# π / π_old of each token, and the advantages of the four completions
RATIOS = [[NAN, 2, 1, 0.5], [NAN, 0.5, NAN, NAN], [NAN, 1, 4, NAN], [NAN, 1.5, 1, 2 / 3]]
ADVANTAGES = [[NAN, 2, 2, 2], [NAN, -1, NAN, NAN], [NAN, -1, -1, NAN], [NAN, 1, 1, 1]]


def table(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def counted(values: Tensor, batch: RolloutBatch) -> list[list[float]]:
    return [row[mask].tolist() for row, mask in zip(values, batch.loss_mask, strict=True)]


@pytest.fixture
def term(siblings):
    """The actor's loss on the four completions; ``entropy`` of every token is 3 where asked for."""

    def make(*, entropy: bool = False, **settings: Any) -> LossTerm:
        batch = siblings.with_columns(advantages=table(ADVANTAGES))
        new = siblings.logprobs + table(RATIOS).log()
        spread = torch.where(batch.loss_mask, 3.0, NAN).double() if entropy else None
        return ClippedPolicy(**settings).loss(Role.ACTOR, Outputs(logprobs=new, entropy=spread), batch)

    return make


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # -min(ρ Â, clip(ρ, 0.8, 1.2) Â): 2 stops at 1.2, 0.5 of a bad token at 0.8; 4 of a bad token does not stop
        ({}, [[-2.4, -2, -1], [0.8], [1, 4], [-1.2, -1, -2 / 3]]),
        # ... above at 1.5
        ({"clip_high": 0.5}, [[-3, -2, -1], [0.8], [1, 4], [-1.5, -1, -2 / 3]]),
        # ... the bad token's loss at 3 times 1
        ({"dual_clip": 3.0}, [[-2.4, -2, -1], [0.8], [1, 3], [-1.2, -1, -2 / 3]]),
        # geometric means of the ratios: 1, 0.5, 2, 1
        ({"importance": "sequence"}, [[-2, -2, -2], [0.8], [2, 2], [-1, -1, -1]]),
        ({"importance": "sequence", "clip": 0.6, "dual_clip": 1.5}, [[-2, -2, -2], [0.5], [1.5, 1.5], [-1, -1, -1]]),
        # their products: 1, 0.5, 4, 1
        ({"importance": "completion"}, [[-2, -2, -2], [0.8], [4, 4], [-1, -1, -1]]),
    ],
)
def test_the_clipped_loss_of_a_token_by_hand(term, siblings, settings, expected) -> None:
    found = term(**settings)
    assert found.unit == "token"
    assert counted(found.loss, siblings) == [pytest.approx(row) for row in expected]
    assert not found.loss[~siblings.loss_mask].any()


def test_which_tokens_are_clipped(term, siblings) -> None:
    def clipped(**settings: Any) -> list[list[float]]:
        return counted(term(**settings).metrics["clip_fraction"], siblings)

    assert clipped() == [[1, 0, 0], [1], [0, 0], [1, 0, 0]]
    assert clipped(clip_high=0.7) == [[1, 0, 0], [1], [0, 0], [0, 0, 0]]
    assert clipped(dual_clip=3.0) == [[1, 0, 0], [1], [0, 1], [1, 0, 0]]
    # whole completions: only the second has a ratio outside the bounds on the side that counts
    assert clipped(importance="sequence") == [[0, 0, 0], [1], [0, 0], [0, 0, 0]]


def test_cispo_by_hand(term, siblings) -> None:
    # -clip(ρ, 0.8, 1.2) Â log π, and log π = log π_old + log ρ
    log2, log15 = math.log(2), math.log(1.5)
    expected = [
        [-1.2 * 2 * (-1 + log2), -1 * 2 * -2, -0.8 * 2 * (-1 - log2)],
        [0.8 * (-1 - log2)],
        [1 * -1, 1.2 * (-3 + 2 * log2)],
        [-1.2 * (-2 + log15), -1 * -1, -0.8 * (-2 - log15)],
    ]
    found = term(policy_loss="cispo")
    assert counted(found.loss, siblings) == [pytest.approx(row) for row in expected]
    assert counted(found.metrics["clip_fraction"], siblings) == [[1, 0, 1], [1], [0, 1], [1, 0, 1]]
    wider = term(policy_loss="cispo", clip=1.0, clip_high=4.0)
    assert not wider.metrics["clip_fraction"].any()
    assert float(wider.loss[2, 2]) == pytest.approx(4 * (-3 + 2 * log2))


@pytest.mark.parametrize(
    ("average", "unit", "expected"),
    [
        ("sequence", "sequence", [-5.4 / 3, 0.8, 2.5, -(2.2 + 2 / 3) / 3]),
        ("budget", "sequence", [-0.54, 0.08, 0.5, -0.22 - 0.2 / 3]),
    ],
)
def test_means_over_completions_by_hand(term, average, unit, expected) -> None:
    found = term(loss_average=average, budget=10, entropy=True)
    assert found.unit == unit
    assert found.loss.tolist() == pytest.approx(expected)
    metrics = {name: value.tolist() for name, value in found.metrics.items()}
    # metrics are means over each completion's tokens, whatever the loss is divided by
    assert metrics["ratio"] == pytest.approx([3.5 / 3, 0.5, 2.5, (2.5 + 2 / 3) / 3])
    assert metrics["clip_fraction"] == pytest.approx([1 / 3, 1, 0, 1 / 3])
    assert metrics["entropy"] == pytest.approx([3, 3, 3, 3])
    # ratio - 1 - log ratio
    low, high = 0.5 - 1 + math.log(2), 4 - 1 - math.log(4)
    assert metrics["approx_kl"][:3] == pytest.approx([(2 - 1 - math.log(2) + low) / 3, low, high / 2])


@pytest.mark.parametrize(
    ("estimator", "first"),
    [
        # d_new = d + log ρ of the first completion: 1 + log 2, 0, 1 - log 2
        ("k1", [1 + math.log(2), 0.0, 1 - math.log(2)]),
        ("k2", [(1 + math.log(2)) ** 2 / 2, 0.0, (1 - math.log(2)) ** 2 / 2]),
        # e^-d - 1 + d: e^-1 / 2 and 2 e^-1
        ("k3", [math.exp(-1) / 2 + math.log(2), 0.0, 2 * math.exp(-1) - math.log(2)]),
    ],
)
def test_the_kl_in_the_loss_by_hand(term, siblings, estimator, first) -> None:
    charged = term(kl_in="loss", kl_coef=0.5, kl_estimator=estimator)
    free = term(kl_in="reward", kl_coef=0.5, kl_estimator=estimator)
    assert torch.equal(free.loss, term().loss)
    assert counted(charged.loss - free.loss, siblings)[0] == pytest.approx([0.5 * kl for kl in first])
    averaged = term(kl_in="loss", kl_coef=0.5, kl_estimator=estimator, loss_average="sequence")
    plain = term(loss_average="sequence")
    assert float((averaged.loss - plain.loss)[0]) == pytest.approx(0.5 * sum(first) / 3)


def test_the_kl_in_the_loss_draws_to_the_reference(siblings) -> None:
    """With nothing to gain, a step down the loss is a step towards the reference, and none is due where it is met."""
    batch = siblings.with_columns(advantages=torch.zeros_like(siblings.logprobs))
    for estimator in ("k2", "k3"):
        logprobs = torch.where(batch.loss_mask, batch.logprobs, 0.0).requires_grad_()
        algorithm = ClippedPolicy(kl_in="loss", kl_coef=0.5, kl_estimator=estimator)
        loss = algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs), batch).loss
        (grad,) = torch.autograd.grad(loss.sum(), logprobs)
        gap = torch.where(batch.loss_mask, batch.logprobs - batch.ref_logprobs, 0.0)
        torch.testing.assert_close(grad.sign(), gap.sign())
        assert float(gap.max()) == 2.0


def test_a_coefficient_of_nothing_needs_no_reference(siblings) -> None:
    batch = siblings.with_columns(advantages=table(ADVANTAGES), ref_logprobs=None)
    out = Outputs(logprobs=siblings.logprobs)
    ClippedPolicy(kl_in="loss", kl_coef=0.0).loss(Role.ACTOR, out, batch)
    with pytest.raises(ValueError, match=r"RolloutBatch\.ref_logprobs"):
        ClippedPolicy(kl_in="loss", kl_coef=0.1).loss(Role.ACTOR, out, batch)


@pytest.mark.parametrize("average", ["token", "sequence", "budget"])
def test_entropy_is_rewarded_under_every_mean(term, average) -> None:
    settings = {"loss_average": average, "budget": 12}
    gained = term(**settings).loss - term(**settings, entropy=True, entropy_coef=0.1).loss
    # 0.3 a token; over a budget of 12 tokens 3, 1, 2 and 3 of them
    expected = {"token": 0.3, "sequence": 0.3, "budget": 0.075}[average]
    assert float(gained[0].max()) == pytest.approx(expected)
    assert "entropy" not in term(**settings).metrics
    assert "entropy" in term(**settings, entropy=True).metrics


def test_gradients_by_hand(siblings) -> None:
    """What stays inside its bounds has -ρ Â, and with cispo every token has -clip(ρ) Â."""

    def gradient(**settings: Any) -> list[list[float]]:
        batch = siblings.with_columns(advantages=table(ADVANTAGES))
        new = torch.where(batch.loss_mask, siblings.logprobs + table(RATIOS).log(), NAN).requires_grad_()
        loss = ClippedPolicy(**settings).loss(Role.ACTOR, Outputs(logprobs=new), batch).loss
        (grad,) = torch.autograd.grad(loss.sum(), new)
        assert not grad[~batch.loss_mask].any()
        return counted(grad, batch)

    assert gradient() == [pytest.approx(row) for row in [[0, -2, -1], [0], [1, 4], [0, -1, -2 / 3]]]
    assert gradient(dual_clip=3.0)[2] == pytest.approx([1, 0])
    assert gradient(policy_loss="cispo") == [
        pytest.approx(row) for row in [[-2.4, -2, -1.6], [0.8], [1, 1.2], [-1.2, -1, -0.8]]
    ]
    # of a whole completion: its ratio, the second one clipped
    assert gradient(importance="sequence") == [pytest.approx(row) for row in [[-2] * 3, [0], [2, 2], [-1] * 3]]


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_high": 0.3, "dual_clip": 2.0, "entropy_coef": 0.1},
        {"loss_average": "sequence", "kl_in": "loss", "kl_estimator": "k3", "kl_coef": 0.3},
        {"loss_average": "budget", "budget": 7, "kl_in": "loss", "kl_estimator": "k2", "kl_coef": 0.3},
    ],
)
def test_gradcheck(siblings, settings) -> None:
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(2, 4, 4, dtype=torch.float64, generator=generator)
    batch = siblings.with_columns(advantages=noise[1])
    new = (torch.where(batch.loss_mask, siblings.logprobs, 0.0) + 0.3 * noise[0]).requires_grad_()
    entropy = noise[1].abs().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda new, entropy: (
            ClippedPolicy(**settings).loss(Role.ACTOR, Outputs(logprobs=new, entropy=entropy), batch).loss
        ),
        (new, entropy),
    )
