from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from posttrain.algorithms import PPO
from posttrain.algorithms.statistics import experience_statistics
from posttrain.types import AlgorithmState, RolloutBatch


def batch(**changes: Any) -> RolloutBatch:
    """Two sequences of two and one trained tokens; NaN wherever nothing counts."""
    nan = math.nan
    columns: dict[str, Any] = {
        "input_ids": torch.zeros(2, 3, dtype=torch.long),
        "attention_mask": torch.ones(2, 3, dtype=torch.bool),
        "loss_mask": torch.tensor([[False, True, True], [False, True, False]]),
        "logprobs": torch.tensor([[nan, -1.0, -1.0], [nan, -2.0, nan]]),
        "ref_logprobs": torch.tensor([[nan, -2.0, -1.0], [nan, -1.0, nan]]),
        "rewards": torch.tensor([1.0, 3.0]),
        "values": torch.tensor([[nan, 1.0, 2.0], [nan, 3.0, nan]]),
        "returns": torch.tensor([[nan, 2.0, 4.0], [nan, 6.0, nan]]),
        "advantages": torch.zeros(2, 3),
        "ended": torch.tensor([True, False]),
        "prompts": ("", ""),
        "completions": ("", ""),
        "extras": ({}, {}),
        **changes,
    }
    return RolloutBatch(**columns)


def test_by_hand() -> None:
    # d: (1, 0) and (-1); sequence sums 1 and -1
    # returns 2, 4, 6: variance 4; returns - values 1, 2, 3: variance 1 -> explained 1 - 1/4
    statistics = experience_statistics(batch(), "k2")
    assert statistics == pytest.approx(
        {
            "reward_mean": 2.0,
            "reward_std": math.sqrt(2),
            "kl": 0.5,
            "kl_k1": 0.0,
            "kl_k2": 0.5,
            "kl_k3": (math.exp(-1) + math.exp(1) - 2) / 2,
            "explained_variance": 0.75,
            "value_mean": 2.0,
            "return_mean": 4.0,
            "advantage_std": 1.0,
            "response_length": 1.5,
            "ended_share": 0.5,
        }
    )
    assert all(type(value) is float for value in statistics.values())


def test_a_perfect_and_a_useless_critic() -> None:
    returns = batch().returns
    assert experience_statistics(batch(values=returns), "k1")["explained_variance"] == 1.0
    assert experience_statistics(batch(values=torch.full((2, 3), 7.0)), "k1")["explained_variance"] == 0.0


def test_without_a_critic_the_advantages_are_what_they_are() -> None:
    # 1, 3 and 5 on trained tokens: variance 4; one of two rows trains
    advantages = torch.tensor([[math.nan, 1.0, 3.0], [math.nan, 5.0, math.nan]])
    found = experience_statistics(batch(values=None, returns=None, advantages=advantages), "k1")
    assert found["advantage_std"] == 2.0
    assert not {"explained_variance", "value_mean", "return_mean", "trained_share"} & found.keys()
    for trains, share in (([True, False], 0.5), ([False, False], 0.0)):
        columns = {"values": None, "returns": None, "advantages": advantages, "trains": torch.tensor(trains)}
        assert experience_statistics(batch(**columns), "k1") == {**found, "trained_share": share}


def test_no_statistic_is_ever_nan() -> None:
    zeros = torch.zeros(2, 3)
    alone = batch(values=zeros, returns=zeros).rows(torch.tensor([1]))
    statistics = experience_statistics(alone, "k1")
    assert all(math.isfinite(value) for value in statistics.values())
    assert statistics["reward_std"] == 0.0
    assert statistics["explained_variance"] == 0.0


def test_ppo_adds_the_coefficient_that_was_used() -> None:
    statistics = PPO(kl_estimator="k3").statistics(batch(), AlgorithmState(kl_coef=0.07))
    assert statistics["kl_coef"] == 0.07
    assert statistics["kl"] == statistics["kl_k3"]
