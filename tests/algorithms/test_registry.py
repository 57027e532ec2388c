from __future__ import annotations

import dataclasses

import pytest

from posttrain.algorithms import ALGORITHMS, PPO, SFT, Algorithm, BradleyTerry, OnlineAlgorithm
from posttrain.config.stages import TRAINING_STAGES
from posttrain.types import Role


def test_every_stage_has_its_algorithm() -> None:
    losses = ("orpo", "cpo", "simpo")  # of stage dpo, chosen by pref_loss
    assert set(ALGORITHMS) == {*TRAINING_STAGES, *losses}
    assert ALGORITHMS["pt"] is ALGORITHMS["sft"] is SFT
    assert ALGORITHMS["rm"] is BradleyTerry
    assert ALGORITHMS["ppo"] is PPO


@pytest.mark.parametrize("algorithm", list(dict.fromkeys(ALGORITHMS.values())))
def test_an_algorithm_is_a_frozen_dataclass_that_names_its_roles(algorithm: type) -> None:
    assert dataclasses.is_dataclass(algorithm)
    assert algorithm.__dataclass_params__.frozen  # type: ignore[attr-defined]
    subject: Algorithm = algorithm()
    assert subject.trains
    assert {*subject.trains, *subject.consults} <= set(Role)
    assert "Paper" in str(algorithm.__doc__) or algorithm is SFT


def test_ppo_is_an_online_algorithm() -> None:
    subject: OnlineAlgorithm = PPO(kl_coef=0.04)
    assert subject.group_size == 1
    assert subject.initial_state().kl_coef == 0.04
    assert subject.trains == (Role.ACTOR, Role.CRITIC)
    assert subject.consults == (Role.REFERENCE, Role.CRITIC)
