from __future__ import annotations

import math

import pytest

from posttrain.algorithms import ORPO
from posttrain.types import Role

ROWS = [[-1, -2], [-1, -1, -1], [-4], [-1, -2]]


def odds(mean: float) -> float:
    return math.exp(mean) / (1 - math.exp(mean))


def test_by_hand(answers) -> None:
    # means over tokens -1.5 and -1, -4 and -1.5
    out, batch = answers(ROWS)
    preference = [math.log1p(odds(-1) / odds(-1.5)), math.log1p(odds(-1.5) / odds(-4))]
    for beta in (0.1, 0.7):
        term = ORPO(beta=beta).loss(Role.ACTOR, out, batch)
        assert term.unit == "pair"
        assert term.loss.tolist() == pytest.approx([1.5 + beta * preference[0], 4 + beta * preference[1]])
        assert term.metrics["odds_ratio_loss"].tolist() == pytest.approx(preference)


def test_metrics_are_of_means(answers) -> None:
    out, batch = answers(ROWS)
    metrics = {name: value.tolist() for name, value in ORPO(beta=0.5).loss(Role.ACTOR, out, batch).metrics.items()}
    assert metrics.pop("odds_ratio_loss")
    assert metrics == {
        "rewards/chosen": [-0.75, -2.0],
        "rewards/rejected": [-0.5, -0.75],
        "rewards/accuracies": [0.0, 0.0],
        "rewards/margins": [-0.25, -1.25],
        "logps/chosen": [-3.0, -4.0],
        "logps/rejected": [-3.0, -3.0],
        "sft_loss": [1.5, 4.0],
    }


def test_no_reference_is_asked() -> None:
    assert ORPO.consults == ()


def test_more_imitation_on_top(answers) -> None:
    # chosen means -1.5 and -4
    out, batch = answers(ROWS)
    plain, more = (ORPO(sft_coef=coef).loss(Role.ACTOR, out, batch).loss for coef in (0.0, 0.5))
    assert (more - plain).tolist() == pytest.approx([0.75, 2.0])
