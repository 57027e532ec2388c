from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import BradleyTerry
from posttrain.types import Outputs, PreferenceBatch, RankingBatch, Role


def pairs(count: int, margins: Tensor | None = None) -> PreferenceBatch:
    ones = torch.ones(2 * count, 2, dtype=torch.bool)
    return PreferenceBatch(input_ids=ones.long(), attention_mask=ones, loss_mask=ones, margins=margins)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


# chosen 2, 1, 0 in the even rows; rejected 1, 1, 3 in the odd ones: differences 1, 0, -3
SCORES = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0, 3.0], dtype=torch.float64)


def test_by_hand() -> None:
    term = BradleyTerry().loss(Role.REWARD, Outputs(scores=SCORES), pairs(3))
    assert term.unit == "pair"
    assert term.loss.tolist() == pytest.approx([softplus(-1), math.log(2), softplus(3)])
    metrics = {name: value.tolist() for name, value in term.metrics.items()}
    assert metrics == {
        "accuracy": [1.0, 0.0, 0.0],
        "margin": [1.0, 0.0, -3.0],
        "chosen_score": [2.0, 1.0, 0.0],
        "rejected_score": [1.0, 1.0, 3.0],
    }


def test_margin_and_centring_by_hand() -> None:
    # differences minus margin: 0, -1, -3; sums 3, 2, 3, squared and a tenth
    batch = pairs(3, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    term = BradleyTerry(center_rewards_coef=0.1).loss(Role.REWARD, Outputs(scores=SCORES), batch)
    assert term.loss.tolist() == pytest.approx([math.log(2) + 0.9, softplus(1) + 0.4, softplus(3) + 0.9])
    # what is logged is the plain difference
    assert term.metrics["margin"].tolist() == [1.0, 0.0, -3.0]


def test_chosen_rises_and_rejected_falls() -> None:
    scores = SCORES.clone().requires_grad_()
    term = BradleyTerry().loss(Role.REWARD, Outputs(scores=scores), pairs(3))
    assert not any(value.requires_grad for value in term.metrics.values())
    (grad,) = torch.autograd.grad(term.loss.sum(), scores)
    assert (grad[0::2] < 0).all()
    torch.testing.assert_close(grad[1::2], -grad[0::2])


def test_a_constant_on_every_score_matters_only_to_centring() -> None:
    def loss(coefficient: float, shift: float) -> Tensor:
        return (
            BradleyTerry(center_rewards_coef=coefficient)
            .loss(Role.REWARD, Outputs(scores=SCORES + shift), pairs(3))
            .loss
        )

    torch.testing.assert_close(loss(0.0, 5.0), loss(0.0, 0.0))
    assert (loss(0.1, 5.0) > loss(0.1, 0.0)).all()


def test_missing_scores_are_named() -> None:
    with pytest.raises(ValueError, match=r"Outputs\.scores"):
        BradleyTerry().loss(Role.REWARD, Outputs(), pairs(3))


def test_gradcheck() -> None:
    algorithm, batch = BradleyTerry(center_rewards_coef=0.2), pairs(3, torch.rand(3, dtype=torch.float64))
    scores = torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: algorithm.loss(Role.REWARD, Outputs(scores=s), batch).loss, (scores,))


def test_a_ranking_by_hand() -> None:
    # scores 2, 1, 0 and 0, 3: pairs 2-1, 2-0, 1-0 and 0-3; rankings weigh the same: (5/2)/3 = 5/6 a pair, and 5/2
    def loss_of(difference: float) -> float:
        return math.log1p(math.exp(-difference))

    scores = torch.tensor([2.0, 1.0, 0.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    batch = RankingBatch(
        input_ids=torch.zeros(5, 2, dtype=torch.long),
        attention_mask=torch.ones(5, 2, dtype=torch.bool),
        loss_mask=torch.ones(5, 2, dtype=torch.bool),
        ranking=torch.tensor([0, 0, 0, 1, 1]),
        weight=torch.tensor([5 / 6, 5 / 6, 5 / 6, 2.5, 2.5], dtype=torch.float64),
    )
    term = BradleyTerry().loss(Role.REWARD, Outputs(scores=scores), batch)
    first, second = loss_of(1) + loss_of(2), loss_of(1)
    expected = [5 / 6 * first, 5 / 6 * second, 0.0, 2.5 * loss_of(-3), 0.0]
    assert term.unit == "sequence"
    assert term.loss.tolist() == pytest.approx(expected)
    mean_of_rankings = ((first + second) / 3 + loss_of(-3)) / 2
    assert float(term.loss.sum()) / 5 == pytest.approx(mean_of_rankings)
    assert term.metrics["accuracy"].nan_to_num(-1.0).tolist() == [1.0, 1.0, -1.0, 0.0, -1.0]
    assert term.metrics["margin"].nan_to_num(-1.0).tolist() == [1.5, 1.0, -1.0, -3.0, -1.0]
    term.loss.sum().backward()
    assert scores.grad is not None
    assert float(scores.grad.sum()) == pytest.approx(0.0, abs=1e-12)


def test_a_ranking_of_two_is_a_pair() -> None:
    scores = torch.tensor([0.3, -0.2, 1.0, 1.5])
    columns = {
        "input_ids": torch.zeros(4, 2, dtype=torch.long),
        "attention_mask": torch.ones(4, 2, dtype=torch.bool),
        "loss_mask": torch.ones(4, 2, dtype=torch.bool),
    }
    algorithm = BradleyTerry(center_rewards_coef=0.1)
    out = Outputs(scores=scores)
    pairs = algorithm.loss(Role.REWARD, out, PreferenceBatch(**columns))
    ranking = torch.tensor([0, 0, 1, 1])
    ranked = algorithm.loss(Role.REWARD, out, RankingBatch(**columns, ranking=ranking, weight=torch.full((4,), 2.0)))
    assert float(ranked.loss.sum() / 4) == pytest.approx(float(pairs.loss.mean()))
