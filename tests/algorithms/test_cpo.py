from __future__ import annotations

import math

import pytest

from posttrain.algorithms import CPO
from posttrain.types import Role

ROWS = [[-1, -2], [-1, -1, -1], [-4], [-1, -2]]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # sums -3 and -3, -4 and -3: differences 0 and -1; chosen -1.5 and -4 a token
        ({"sft_coef": 0.0}, [math.log(2), softplus(0.5)]),
        ({}, [math.log(2) + 1.5, softplus(0.5) + 4]),
        ({"sft_coef": 0.1}, [math.log(2) + 0.15, softplus(0.5) + 0.4]),
        ({"sft_coef": 0.0, "label_smoothing": 0.2}, [math.log(2), 0.8 * softplus(0.5) + 0.2 * softplus(-0.5)]),
    ],
)
def test_by_hand(answers, settings, expected) -> None:
    out, batch = answers(ROWS)
    term = CPO(**{"beta": 0.5, **settings}).loss(Role.ACTOR, out, batch)
    assert term.unit == "pair"
    assert term.loss.tolist() == pytest.approx(expected)
    assert {name: term.metrics[name].tolist() for name in ("rewards/chosen", "rewards/rejected", "sft_loss")} == {
        "rewards/chosen": [-1.5, -2.0],
        "rewards/rejected": [-1.5, -1.5],
        "sft_loss": [1.5, 4.0],
    }
    assert term.metrics["rewards/accuracies"].tolist() == [0.0, 0.0]


def test_no_reference_is_asked() -> None:
    assert CPO.consults == ()
