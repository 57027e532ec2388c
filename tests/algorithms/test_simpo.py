from __future__ import annotations

import math

import pytest

from posttrain.algorithms import SimPO
from posttrain.types import Role

ROWS = [[-1, -2], [-1, -1, -1], [-0.5], [-1, -2]]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # a token: -1.5 and -1, -0.5 and -1.5; doubled differences -1 and 2, less the margin of a half
        ({}, [softplus(1.5), softplus(-1.5)]),
        ({"simpo_gamma": 0.0}, [softplus(1.0), softplus(-2.0)]),
        ({"beta": 10.0, "simpo_gamma": 2.0}, [softplus(7.0), softplus(-8.0)]),
        ({"sft_coef": 0.2}, [softplus(1.5) + 0.3, softplus(-1.5) + 0.1]),
    ],
)
def test_by_hand(answers, settings, expected) -> None:
    out, batch = answers(ROWS)
    term = SimPO(**settings).loss(Role.ACTOR, out, batch)
    assert term.unit == "pair"
    assert term.loss.tolist() == pytest.approx(expected)


def test_metrics_are_scaled_means_without_the_margin(answers) -> None:
    out, batch = answers(ROWS)
    metrics = {name: value.tolist() for name, value in SimPO().loss(Role.ACTOR, out, batch).metrics.items()}
    assert metrics == {
        "rewards/chosen": [-3.0, -1.0],
        "rewards/rejected": [-2.0, -3.0],
        "rewards/accuracies": [0.0, 1.0],
        "rewards/margins": [-1.0, 2.0],
        "logps/chosen": [-3.0, -0.5],
        "logps/rejected": [-3.0, -3.0],
        "sft_loss": [1.5, 0.5],
    }


def test_a_longer_answer_is_no_better_for_its_length(answers) -> None:
    """Every token as likely as before, twice as many of them: nothing changes."""
    out, batch = answers(ROWS)
    longer, wide = answers([row * 2 for row in ROWS])
    found = [SimPO().loss(Role.ACTOR, *both).loss.tolist() for both in ((out, batch), (longer, wide))]
    assert found[0] == pytest.approx(found[1])


def test_no_reference_is_asked() -> None:
    assert SimPO.consults == ()
