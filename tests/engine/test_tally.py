"""What is counted, and what it is divided by."""

from __future__ import annotations

import pytest
import torch

from posttrain.engine.tally import Tally, unit_counts


def test_units_by_hand(make_batch) -> None:
    """Rows of 4, 2, 3 and 1 tokens whose masks begin at 1, 0, 0 and 0: 3 + 1 + 2 + 0 tokens that something predicts."""
    batch = make_batch([[5, 6, 7, 8], [5, 6], [5, 6, 7], [5]], starts=[1, 0, 0, 0], pairs=True, width=6)
    assert unit_counts(batch) == {"token": 6.0, "sequence": 4.0, "pair": 2.0, "constant": 1.0}


def test_nothing_trained_divides_by_one(make_batch) -> None:
    assert unit_counts(make_batch([[5, 6]], starts=[2]))["token"] == 1.0


def test_a_mean_is_over_all_that_was_added() -> None:
    # 6 over 2 units and 1 over 5: 7 / 7, where the mean of means would be 1.6
    tally = Tally()
    tally.add("loss", torch.tensor(6.0, requires_grad=True), 2)
    tally.add("loss", torch.tensor(1.0), 5)
    tally.add("ratio", torch.tensor(3.0), 2)
    assert tally.means() == pytest.approx({"loss": 1.0, "ratio": 1.5})
    assert not tally.sums["loss"].requires_grad
