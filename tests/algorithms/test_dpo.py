from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from posttrain.algorithms import DPO
from posttrain.types import LossTerm, Outputs, Role

# Two pairs: sums -3 and -3, -4 and -3; of 2 and 3, 1 and 2 tokens.
ROWS = [[-1, -2], [-1, -1, -1], [-4], [-1, -2]]
REFERENCE = torch.tensor([-4.0, -2.5, -3.0, -5.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def term(answers):
    def make(**settings: Any) -> LossTerm:
        out, batch = answers(ROWS, ref_logps=REFERENCE)
        return DPO(**{"beta": 0.5, **settings}).loss(Role.ACTOR, out, batch)

    return make


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # chosen 1 and -1 above the reference, rejected -0.5 and 2: h = 1.5 and -3
        ({}, [softplus(-0.75), softplus(1.5)]),
        ({"beta": 0.1}, [softplus(-0.15), softplus(0.3)]),
        (
            {"label_smoothing": 0.1},
            [0.9 * softplus(-0.75) + 0.1 * softplus(0.75), 0.9 * softplus(1.5) + 0.1 * softplus(-1.5)],
        ),
        (
            {"pref_loss": "robust", "label_smoothing": 0.1},
            [(0.9 * softplus(s) - 0.1 * softplus(-s)) / 0.8 for s in (-0.75, 1.5)],
        ),
        ({"pref_loss": "hinge"}, [0.25, 2.5]),
        # means over tokens: policy -1.5, -1, -4, -1.5; reference -2, -2.5 / 3, -3, -2.5: h = 2/3 and -2, aim 1
        ({"pref_loss": "ipo"}, [1 / 9, 9.0]),
        ({"pref_loss": "ipo", "beta": 0.1}, [(2 / 3 - 5) ** 2, 49.0]),
        # each side by itself
        ({"pref_loss": "apo_zero"}, [sigmoid(-0.5) + sigmoid(-0.25), sigmoid(0.5) + sigmoid(1.0)]),
        # a fifth of the chosen answer's loss a token, 1.5 and 4
        ({"sft_coef": 0.2}, [softplus(-0.75) + 0.3, softplus(1.5) + 0.8]),
        ({"pref_loss": "ipo", "sft_coef": 0.2}, [1 / 9 + 0.3, 9.8]),
    ],
)
def test_by_hand(term, settings, expected) -> None:
    found = term(**settings)
    assert found.unit == "pair"
    assert found.loss.tolist() == pytest.approx(expected)


def test_metrics_by_hand(term) -> None:
    metrics = {name: value.tolist() for name, value in term().metrics.items()}
    assert metrics == {
        "rewards/chosen": [0.5, -0.5],
        "rewards/rejected": [-0.25, 1.0],
        "rewards/accuracies": [1.0, 0.0],
        "rewards/margins": [0.75, -1.5],
        "logps/chosen": [-3.0, -4.0],
        "logps/rejected": [-3.0, -3.0],
        "sft_loss": [1.5, 4.0],
    }
    of_means = term(pref_loss="ipo").metrics
    assert of_means["rewards/chosen"].tolist() == pytest.approx([0.25, -0.5])
    assert of_means["rewards/rejected"].tolist() == pytest.approx([-1 / 12, 0.5])
    assert of_means["logps/chosen"].tolist() == [-3.0, -4.0]


def test_before_any_update_the_loss_is_that_of_a_coin(answers) -> None:
    """Equal implicit rewards are no success, however different the answers are."""
    out, batch = answers(ROWS, ref_logps=torch.tensor([-3.0, -3.0, -4.0, -3.0]))
    found = DPO().loss(Role.ACTOR, out, batch)
    assert found.loss.tolist() == pytest.approx([math.log(2)] * 2)
    assert found.metrics["rewards/accuracies"].tolist() == [0.0, 0.0]


def test_what_single_tokens_do_not_say_their_sum_does(answers) -> None:
    """The same sums from other tokens: the loss is the same, the gradient of every token is that of its answer."""
    out, batch = answers([[-2, -1], [-0.5, -2, -0.5], [-4], [-3, 0]], ref_logps=REFERENCE)
    logprobs = out.logprobs.clone().requires_grad_()
    found = DPO(beta=0.5).loss(Role.ACTOR, Outputs(logprobs=logprobs), batch)
    assert found.loss.tolist() == pytest.approx([softplus(-0.75), softplus(1.5)])
    (grad,) = torch.autograd.grad(found.loss.sum(), logprobs)
    # -β σ(-β h)
    first, second = 0.5 * sigmoid(-0.75), 0.5 * sigmoid(1.5)
    assert grad[batch.loss_mask].tolist() == pytest.approx([-first] * 2 + [first] * 3 + [-second] + [second] * 2)
    assert not grad[~batch.loss_mask].any()


def test_the_reference_is_asked_for_by_name(answers) -> None:
    out, batch = answers(ROWS)
    with pytest.raises(ValueError, match=r"PreferenceBatch\.ref_logps"):
        DPO().loss(Role.ACTOR, out, batch)
