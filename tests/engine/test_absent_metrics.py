"""Metrics that concern some sequences or pairs only: NaN for the others, and a mean over those that are left."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.engine.engine import Engine
from posttrain.engine.tally import Tally
from posttrain.types import Batch, LossTerm

NAN = math.nan


def batch(rows):
    mask = torch.ones(rows, 3, dtype=torch.bool)
    return Batch(input_ids=mask.long(), attention_mask=mask, loss_mask=mask)


def tallied(*pieces, unit="sequence"):
    """Means over pieces given as lists of one metric's values; the loss of each unit is 1."""
    tally = Tally()
    rows = {"sequence": 1, "pair": 2}[unit]
    for values in pieces:
        term = LossTerm(loss=torch.ones(len(values)), metrics={"seen": torch.tensor(values)}, unit=unit)
        Engine._reduced(term, {unit: 1.0}, batch(rows * len(values)), "loss/x", tally)
    return tally.means()


@pytest.mark.parametrize("unit", ["sequence", "pair"])
def test_what_is_absent_does_not_count(unit) -> None:
    assert tallied([1.0, NAN, 3.0, NAN], unit=unit) == {"loss/x": 1.0, "seen": 2.0}
    # not a mean of means: three values of 1, one of 5
    assert tallied([1.0, 1.0, 1.0, NAN], [NAN, 5.0], unit=unit)["seen"] == 2.0
    # a piece in which nobody has it changes nothing
    assert tallied([1.0, 3.0], [NAN, NAN], unit=unit)["seen"] == 2.0


def test_the_loss_counts_all() -> None:
    tally = Tally()
    term = LossTerm(loss=torch.tensor([1.0, 5.0]), metrics={"seen": torch.tensor([NAN, 1.0])}, unit="sequence")
    share = Engine._reduced(term, {"sequence": 4.0}, batch(2), "loss/x", tally)
    assert float(share) == 1.5
    assert tally.means() == {"loss/x": 3.0, "seen": 1.0}


def test_a_token_without_a_number_is_a_mistake() -> None:
    """Only whole sequences and pairs can be left out; a NaN among tokens must be seen."""
    tally = Tally()
    values = torch.tensor([[0.0, NAN, 1.0]])
    term = LossTerm(loss=torch.zeros(1, 3), metrics={"seen": values}, unit="token")
    Engine._reduced(term, {"token": 2.0}, batch(1), "loss/x", tally)
    assert math.isnan(tally.means()["seen"])
