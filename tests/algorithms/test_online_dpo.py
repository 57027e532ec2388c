from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from posttrain.algorithms import OnlineDPO
from posttrain.types import AlgorithmState, Outputs, Role, RolloutBatch

NAN = math.nan


def chosen(batch: RolloutBatch, **settings: Any) -> tuple[list[float], list[bool]]:
    """The sign on each completion's tokens, and whether it trains."""
    algorithm = OnlineDPO(**{"group_size": 2, **settings})
    found, state = algorithm.credit(batch, AlgorithmState(kl_coef=algorithm.kl_coef, iterations=1))
    assert found.returns is None
    assert state.iterations == 2
    first = found.advantages[:, 1]
    assert torch.equal(found.advantages, torch.where(batch.loss_mask, first[:, None], 0.0))
    return first.tolist(), found.trains.tolist()


def scored(batch: RolloutBatch, *rewards: float) -> RolloutBatch:
    return batch.with_columns(rewards=torch.tensor(rewards, dtype=torch.float64))


def test_the_better_one_of_two_by_hand(siblings) -> None:
    # rewards 10, -4 and 1, 3
    assert chosen(siblings) == ([1, -1, -1, 1], [True] * 4)


def test_the_extremes_of_four(siblings) -> None:
    assert chosen(siblings, group_size=4) == ([1, -1, 0, 0], [True, True, False, False])
    assert chosen(scored(siblings, 1, 2, 5, 3), group_size=4) == ([-1, 0, 1, 0], [True, False, True, False])


def test_ties(siblings) -> None:
    """Without a difference there is no pair; among equally good (or bad) ones the first is taken."""
    assert chosen(scored(siblings, 2, 2, 3, 1)) == ([0, 0, 1, -1], [False, False, True, True])
    assert chosen(scored(siblings, 2, 2, 1, 1)) == ([0] * 4, [False] * 4)
    assert chosen(scored(siblings, 2, 1, 2, 1), group_size=4) == ([1, -1, 0, 0], [True, True, False, False])
    assert chosen(scored(siblings, 5, 5, 5, 4), group_size=4) == ([1, 0, 0, -1], [True, False, False, True])


def test_the_penalty_may_turn_a_pair_round(siblings) -> None:
    # KL 2, 2, 0, 1: 1.4 - 1 against 0.9 - 0.5
    close = scored(siblings, 10, -4, 1.0, 1.4)
    assert chosen(close)[0] == [1, -1, -1, 1]
    assert chosen(close, kl_coef=0.5)[0] == [1, -1, 1, -1]
    assert chosen(close, kl_coef=0.5, kl_in="loss")[0] == [1, -1, -1, 1]
    # bounded to 1, the second pair is equal
    assert chosen(close, reward_clip=1.0)[1] == [True, True, False, False]


def outputs(batch: RolloutBatch) -> Outputs:
    """Summed log-probabilities -3, -2, -5 and -4; under the reference -6, -3, -4 and -6."""
    rows = [[NAN, -1, -1, -1], [NAN, -2, NAN, NAN], [NAN, -4, -1, NAN], [NAN, -2, -1, -1]]
    return Outputs(logprobs=torch.tensor(rows, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "of"),
    [
        ({"beta": 0.5}, lambda h: math.log1p(math.exp(-0.5 * h))),
        ({"beta": 0.5, "pref_loss": "ipo"}, lambda h: (h - 1) ** 2),
        ({"beta": 0.5, "pref_loss": "hinge"}, lambda h: max(0.0, 1 - 0.5 * h)),
        (
            {"beta": 0.5, "label_smoothing": 0.2},
            lambda h: 0.8 * math.log1p(math.exp(-0.5 * h)) + 0.2 * math.log1p(math.exp(0.5 * h)),
        ),
    ],
)
def test_the_loss_by_hand(siblings, settings, of) -> None:
    # policy less reference: 3, 1, -1, 2; better less worse: 3 - 1 and 2 + 1, the second pair's better one last
    algorithm = OnlineDPO(**settings)
    batch, _ = algorithm.credit(siblings, algorithm.initial_state())
    term = algorithm.loss(Role.ACTOR, outputs(batch), batch)
    assert term.unit == "pair"
    assert term.loss.tolist() == pytest.approx([of(2), of(3)])
    assert term.metrics["rewards/margins"].tolist() == [1.0, 1.5]
    assert term.metrics["rewards/accuracies"].tolist() == [1.0, 1.0]


def test_the_entropy_of_both_answers_is_logged_where_there_is_one(siblings) -> None:
    """Answers of 3, 1, 2 and 3 tokens; per token 1, 4, 2 and 3 nats, so 2.5 and 2.5 for the pairs."""
    algorithm = OnlineDPO()
    batch, _ = algorithm.credit(siblings, algorithm.initial_state())
    plain = outputs(batch)
    assert "entropy" not in algorithm.loss(Role.ACTOR, plain, batch).metrics
    nats = torch.tensor([[1.0], [4.0], [2.0], [3.0]], dtype=torch.float64).expand(4, 4)
    out = Outputs(logprobs=plain.logprobs, entropy=torch.where(batch.loss_mask, nats, NAN))
    assert algorithm.loss(Role.ACTOR, out, batch).metrics["entropy"].tolist() == [2.5, 2.5]


def test_a_pair_that_the_policy_has_the_wrong_way_round(siblings) -> None:
    algorithm = OnlineDPO(beta=0.5)
    batch, _ = algorithm.credit(scored(siblings, 0, 1, 0, 0), algorithm.initial_state())
    batch = batch.rows(batch.trains.nonzero().squeeze(1))
    term = algorithm.loss(Role.ACTOR, Outputs(logprobs=outputs(batch).logprobs[:2]), batch)
    assert term.loss.tolist() == pytest.approx([math.log1p(math.exp(1))])
    assert term.metrics["rewards/margins"].tolist() == [-1.0]
    assert term.metrics["rewards/accuracies"].tolist() == [0.0]


def test_the_better_one_rises_and_the_worse_one_falls(siblings) -> None:
    algorithm = OnlineDPO()
    batch, _ = algorithm.credit(siblings, algorithm.initial_state())
    logprobs = outputs(batch).logprobs.requires_grad_()
    term = algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs), batch)
    assert not any(value.requires_grad for value in term.metrics.values())
    (grad,) = torch.autograd.grad(term.loss.sum(), logprobs)
    assert torch.equal(grad.sign(), -batch.advantages)


def test_gradcheck(siblings) -> None:
    algorithm = OnlineDPO(beta=0.7)
    batch, _ = algorithm.credit(siblings, algorithm.initial_state())
    logprobs = torch.where(batch.loss_mask, outputs(batch).logprobs, 0.0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda new: algorithm.loss(Role.ACTOR, Outputs(logprobs=new), batch).loss, (logprobs,)
    )


def test_pairs_stay_together() -> None:
    assert OnlineDPO.rows_together == OnlineDPO(group_size=6).trained_group == 2
