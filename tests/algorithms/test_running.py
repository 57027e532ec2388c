from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.algorithms.running import reward_std, with_rewards
from posttrain.types import AlgorithmState


def test_by_hand() -> None:
    # 1, 2 then 6: mean 3, squared deviations 4 + 1 + 9
    state = with_rewards(AlgorithmState(kl_coef=0.3), torch.tensor([1.0, 2.0]))
    assert (state.reward_count, state.reward_mean, state.reward_m2) == (2, 1.5, 0.5)
    state = with_rewards(state, torch.tensor([6.0]))
    assert (state.reward_count, state.reward_mean, state.reward_m2) == pytest.approx((3, 3, 14))
    assert reward_std(state) == pytest.approx(7**0.5)
    assert state.kl_coef == 0.3


def test_deviation_before_the_second_reward_is_zero() -> None:
    assert reward_std(AlgorithmState()) == 0.0
    assert reward_std(with_rewards(AlgorithmState(), torch.tensor([5.0]))) == 0.0


@given(
    rewards=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30),
    cuts=st.lists(st.integers(1, 29), max_size=4),
)
@settings(deadline=None, max_examples=40)
def test_any_split_gives_the_statistics_of_all(rewards: list[float], cuts: list[int]) -> None:
    edges = sorted({0, len(rewards), *(cut for cut in cuts if cut < len(rewards))})
    state = AlgorithmState()
    for start, stop in itertools.pairwise(edges):
        state = with_rewards(state, torch.tensor(rewards[start:stop]))
    assert state.reward_count == len(rewards)
    assert state.reward_mean == pytest.approx(statistics.fmean(rewards), abs=1e-6)
    assert reward_std(state) == pytest.approx(statistics.stdev(rewards), abs=1e-6)
