"""Several rewards as one."""

from __future__ import annotations

import pytest
import torch

from posttrain.rewards import FunctionReward, WeightedReward, measured


def giving(*scores):
    return lambda batch: torch.tensor([float(score) for score in scores])


def test_the_sum_is_weighted_and_the_parts_are_kept_as_they_were(rollouts):
    reward = WeightedReward({"a": giving(1, 2), "b": giving(10, -10)}, (2.0, 0.5))
    # 2 * 1 + 0.5 * 10, 2 * 2 - 0.5 * 10
    assert reward(rollouts(["x", "y"])).tolist() == [7.0, -1.0]
    assert {name: scores.tolist() for name, scores in reward.last.items()} == {"a": [1.0, 2.0], "b": [10.0, -10.0]}
    assert reward.weights == {"a": 2.0, "b": 0.5}


def test_without_weights_each_part_counts_once(rollouts):
    assert WeightedReward({"a": giving(1, 2), "b": giving(3, 4)})(rollouts(["x", "y"])).tolist() == [4.0, 6.0]


def test_parts_are_clipped_before_they_are_weighted(rollouts):
    parts = {"a": giving(5, -5), "b": giving(5, 0.5)}
    one = WeightedReward(parts, (1.0, 10.0), clips=(2.0,))
    assert one(rollouts(["x", "y"])).tolist() == [22.0, 3.0]  # 2 + 10 * 2, -2 + 10 * 0.5
    assert one.last["a"].tolist() == [5.0, -5.0]
    each = WeightedReward(parts, clips=(0.0, 1.0))
    assert each(rollouts(["x", "y"])).tolist() == [6.0, -4.5]  # 5 + 1, -5 + 0.5


def test_normalised_parts_have_one_scale_and_a_constant_one_counts_nothing(rollouts):
    # a: mean 2, deviation sqrt((4 + 0 + 4) / 3); b is constant
    reward = WeightedReward({"a": giving(0, 2, 4), "b": giving(7, 7, 7)}, norm="batch")
    edge = 2 / (8 / 3) ** 0.5
    assert reward(rollouts(["x", "y", "z"])).tolist() == pytest.approx([-edge, 0.0, edge])
    assert reward.last["b"].tolist() == [7.0, 7.0, 7.0]


def test_clips_are_of_normalised_scores(rollouts):
    reward = WeightedReward({"a": giving(0, 2, 4)}, clips=(1.0,), norm="batch")
    assert reward(rollouts(["x", "y", "z"])).tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_what_is_measured_can_be_compared_with_other_batches(rollouts):
    normalised = WeightedReward({"a": giving(0, 2)}, (3.0,), clips=(1.5,), norm="batch")
    assert measured(normalised)(rollouts(["x", "y"])).tolist() == [0.0, 4.5]
    plain = WeightedReward({"a": giving(0, 2)})
    assert measured(plain) is plain
    function = FunctionReward(lambda completions: completions)
    assert measured(function) is function


@pytest.mark.parametrize("numbers", [{"weights": (1.0,)}, {"clips": (1.0, 2.0, 3.0)}])
def test_numbers_and_parts_must_match(numbers):
    with pytest.raises(ValueError, match="for 2 parts"):
        WeightedReward({"a": giving(1), "b": giving(1)}, **numbers)
