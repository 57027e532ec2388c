from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from posttrain.algorithms import KTO
from posttrain.types import LossTerm, Outputs, Role

# Sums -3, -3, -4, -3; 1, -0.5, -1 and 2 above the reference; the reference point is 0.5.
ROWS = [[-1, -2], [-1, -1, -1], [-4], [-1, -2]]
GOOD = [True, False, True, False]
REFERENCE = torch.tensor([-4.0, -2.5, -3.0, -5.0])
POINT = torch.full((4,), 0.5)
NAN = math.nan


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def term(judged):
    def make(*, good: list[bool] = GOOD, **settings: Any) -> LossTerm:
        out, batch = judged(ROWS, good, ref_logps=REFERENCE, kl=POINT)
        return KTO(**{"beta": 2.0, **settings}).loss(Role.ACTOR, out, batch)

    return make


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # doubled: 1 below its point 0.5 above, and so on: h - z = 0.5, -1, -1.5, 1.5
        ({}, [sigmoid(-1), sigmoid(-2), sigmoid(3), sigmoid(3)]),
        ({"beta": 0.2}, [sigmoid(-0.1), sigmoid(-0.2), sigmoid(0.3), sigmoid(0.3)]),
        (
            {"desirable_weight": 3.0, "undesirable_weight": 0.5},
            [3 * sigmoid(-1), sigmoid(-2) / 2, 3 * sigmoid(3), sigmoid(3) / 2],
        ),
        # a tenth of the loss a token, 1.5 and 4, of good answers only
        ({"sft_coef": 0.1}, [sigmoid(-1) + 0.15, sigmoid(-2), sigmoid(3) + 0.4, sigmoid(3)]),
    ],
)
def test_by_hand(term, settings, expected) -> None:
    found = term(**settings)
    assert found.unit == "sequence"
    assert found.loss.tolist() == pytest.approx(expected)


def test_metrics_of_the_other_kind_are_no_numbers(term) -> None:
    metrics = {name: value.tolist() for name, value in term().metrics.items()}
    assert metrics["rewards/accuracies"] == [1, 1, 0, 0]
    assert metrics["kl"] == [0.5] * 4
    for name, expected in {
        "rewards/chosen": [2, NAN, -2, NAN],
        "rewards/rejected": [NAN, -1, NAN, 4],
        "logps/chosen": [-3, NAN, -4, NAN],
        "logps/rejected": [NAN, -3, NAN, -3],
    }.items():
        assert metrics[name] == pytest.approx(expected, nan_ok=True), name


def test_what_is_exactly_at_the_point_is_no_gain(judged) -> None:
    out, batch = judged(ROWS[:2], [True, False], ref_logps=torch.tensor([-3.5, -3.5]), kl=POINT[:2])
    found = KTO().loss(Role.ACTOR, out, batch)
    assert found.loss.tolist() == pytest.approx([0.5, 0.5])
    assert found.metrics["rewards/accuracies"].tolist() == [0, 1]


def test_good_answers_rise_and_bad_ones_fall_and_the_point_stays(judged) -> None:
    point = POINT.clone().requires_grad_()
    out, batch = judged(ROWS, GOOD, ref_logps=REFERENCE, kl=point)
    logprobs = out.logprobs.clone().requires_grad_()
    found = KTO().loss(Role.ACTOR, Outputs(logprobs=logprobs), batch)
    assert not any(value.requires_grad for value in found.metrics.values())
    grad, of_point = torch.autograd.grad(found.loss.sum(), (logprobs, point), allow_unused=True)
    assert of_point is None
    signs = torch.where(batch.desirable, -1.0, 1.0).double()[:, None] * batch.loss_mask
    assert torch.equal(grad.sign(), signs)


def test_the_reference_point_is_one_mean_over_the_step(judged) -> None:
    # policy less reference on the mismatched rows: 1, 0, -2, 2
    _, batch = judged(ROWS, GOOD, ref_logps=REFERENCE, mismatched_ref_logps=torch.tensor([-2.0, -2.0, -3.0, -2.0]))
    algorithm = KTO()
    found = algorithm.with_reference_point(batch, torch.tensor([-1.0, -2.0, -5.0, 0.0]))
    assert found.kl.tolist() == [0.25] * 4
    # every part of the step has the whole step's point, not its own (of the first two: 0.5)
    assert found.rows(torch.tensor([0, 1])).kl.tolist() == [0.25] * 2
    # a policy that finds the other answers less likely than the reference did is not below 0
    assert algorithm.with_reference_point(batch, torch.full((4,), -9.0)).kl.tolist() == [0.0] * 4


@pytest.mark.parametrize("missing", ["ref_logps", "kl"])
def test_missing_columns_are_named(judged, missing) -> None:
    columns = {"ref_logps": REFERENCE, "kl": POINT, missing: None}
    out, batch = judged(ROWS, GOOD, **columns)
    with pytest.raises(ValueError, match=rf"UnpairedBatch\.{missing}"):
        KTO().loss(Role.ACTOR, out, batch)
    with pytest.raises(ValueError, match=r"UnpairedBatch\.mismatched_ref_logps"):
        KTO().with_reference_point(batch, POINT)


def test_a_gain_is_measured_on_the_scale_of_rewards(judged) -> None:
    # -3 and -3 are 1 above the reference and 0.5 above the point; as rewards 0.1 above 0.05
    out, batch = judged(ROWS[:2], [True, False], ref_logps=torch.tensor([-4.0, -4.0]), kl=POINT[:2])
    found = KTO(beta=0.1).loss(Role.ACTOR, out, batch)
    assert found.metrics["rewards/accuracies"].tolist() == [1, 0]
