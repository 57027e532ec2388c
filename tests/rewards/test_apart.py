"""Rewards that work beside the run: in which thread, in which order, and what becomes of their failures."""

from __future__ import annotations

import threading

import pytest
import torch

from posttrain.errors import RewardError
from posttrain.rewards import FunctionReward, WeightedReward, begin
from posttrain.rewards.rules import RuleReward

WAIT_S = 60  # for what should come at once


def apart(function):
    return FunctionReward(function, time_limit_s=WAIT_S)


def test_the_caller_goes_on_while_the_reward_works(rollouts) -> None:
    """The function ends only after the caller has come past ``begin``."""
    passed = threading.Event()
    begun = begin(apart(lambda completions: [float(passed.wait(WAIT_S))] * len(completions)), rollouts(["x", "y"]))
    passed.set()
    assert begun.rewards().tolist() == [1.0, 1.0]


def test_what_asks_a_model_of_the_run_is_asked_at_once_where_it_is_called(rollouts) -> None:
    threads = []

    def role(batch):
        threads.append(threading.current_thread())
        return torch.zeros(len(batch))

    begun = begin(role, rollouts(["x"]))
    assert threads == [threading.current_thread()]
    assert begun.rewards().tolist() == [0.0]
    assert len(threads) == 1, "asked once"


def test_a_function_without_a_limit_stays_in_the_main_thread(rollouts) -> None:
    threads = []

    def function(completions):
        threads.append(threading.current_thread())
        return [1.0]

    assert begin(FunctionReward(function), rollouts(["x"])).rewards().tolist() == [1.0]
    assert threads == [threading.current_thread()]


def test_parts_of_a_sum_work_apart_one_by_one_and_count_in_their_order(rollouts) -> None:
    passed, order, threads = threading.Event(), [], {}

    def outside(name, score):
        def function(completions):
            passed.wait(WAIT_S)
            order.append(name)
            return [score] * len(completions)

        return apart(function)

    def role(batch):
        threads["role"] = threading.current_thread()
        order.append("role")
        passed.set()
        return torch.full((len(batch),), 5.0)

    reward = WeightedReward({"a": outside("a", 1.0), "role": role, "b": outside("b", 3.0)}, (1.0, 10.0, 100.0))
    batch = rollouts(["x", "y"])
    assert begin(reward, batch).rewards().tolist() == [351.0, 351.0]
    assert order == ["role", "a", "b"], "the parts outside wait for the model's, and for each other"
    assert threads["role"] is threading.current_thread()
    assert list(reward.last) == ["a", "role", "b"]
    assert reward.last["b"].tolist() == [3.0, 3.0]
    assert reward(batch).tolist() == [351.0, 351.0]


def test_a_failure_comes_out_unchanged_where_it_is_waited_for(rollouts) -> None:
    failure = RewardError("the server is gone")

    class Failing:
        is_apart = True

        def __call__(self, batch):
            raise failure

    begun = begin(WeightedReward({"a": Failing(), "b": lambda batch: torch.zeros(len(batch))}), rollouts(["x"]))
    with pytest.raises(RewardError) as caught:
        begun.rewards()
    assert caught.value is failure


def test_nothing_more_is_begun_after_giving_up(rollouts) -> None:
    passed, reached = threading.Event(), threading.Event()
    asked = []

    def slow(completions):
        reached.set()
        passed.wait(WAIT_S)
        return [0.0]

    parts = {"slow": apart(slow), "next": apart(lambda completions: asked.append(1) or [0.0])}
    begun = begin(WeightedReward(parts), rollouts(["x"]))
    assert reached.wait(WAIT_S)
    begun.give_up()
    passed.set()
    for thread in threading.enumerate():
        if thread.name == "rewards apart":
            thread.join(WAIT_S)
    assert not asked


def test_a_model_that_fails_stops_the_parts_outside(rollouts) -> None:
    reached, passed, asked = threading.Event(), threading.Event(), []

    def first(completions):
        reached.set()
        passed.wait(WAIT_S)
        return [0.0]

    def role(batch):
        reached.wait(WAIT_S)
        raise RuntimeError("out of memory")

    parts = {"first": apart(first), "second": apart(lambda completions: asked.append(1) or [0.0]), "role": role}
    with pytest.raises(RuntimeError, match="out of memory"):
        begin(WeightedReward(parts), rollouts(["x"]))
    passed.set()
    for thread in threading.enumerate():
        if thread.name == "rewards apart":
            thread.join(WAIT_S)
    assert not asked


def test_rules_work_apart(rollouts) -> None:
    seen = []
    rule = RuleReward(lambda completion, row: float(seen.append(threading.current_thread()) or 1), name="own")
    assert begin(rule, rollouts(["x"])).rewards().tolist() == [1.0]
    assert seen[0] is not threading.current_thread()
