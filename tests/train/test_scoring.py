"""Rewards beside the roles' answers, and values that the sampler recorded in place of the critic's answer."""

from __future__ import annotations

import threading

import pytest
import torch

from posttrain.errors import RewardError
from posttrain.rewards import FunctionReward
from posttrain.train import online
from posttrain.train.pace import Pace
from posttrain.train.recorded import recorded_value_head
from posttrain.types import Role

WAIT_S = 60


def quiet(name, done, total):
    """No progress bar."""


@pytest.fixture
def asked(monkeypatch):
    """Makes a run whose engine notes what it is consulted for; ``on_consult`` runs before each answer."""

    def watch(run, on_consult=lambda roles: None):
        calls, real = [], run.engine.consult

        def consult(roles, batch, **options):
            calls.append(roles)
            on_consult(roles)
            return real(roles, batch, **options)

        monkeypatch.setattr(run.engine, "consult", consult)
        return calls

    return watch


def recording(run):
    """The run's sampler with the head of the critic."""
    run.sampler.value_head = recorded_value_head(run.engine.roles)
    assert run.sampler.value_head is not None
    return run


def test_a_slow_reward_and_the_roles_work_at_the_same_time(make_online_run, notebook, asked) -> None:
    """The reward ends only once the reference was asked, and the roles answer only once the reward has begun."""
    consulted, begun = threading.Event(), threading.Event()

    def slow(completions):
        begun.set()
        assert consulted.wait(WAIT_S), "the reference waits for the reward"
        return [float(len(text)) for text in completions]

    def on_consult(roles):
        assert begun.wait(WAIT_S), "the reward waits for the reference"
        consulted.set()

    run, _ = make_online_run({"reward": FunctionReward(slow, time_limit_s=WAIT_S)})
    calls, notes = asked(run, on_consult), notebook()
    online.fit(run, 2, notes, quiet)
    assert notes.steps == [1, 2]
    assert calls
    for stats in notes.stats:
        assert 0 <= stats["seconds_reward_wait"] <= stats["seconds_score"]


def test_a_failure_of_the_reward_comes_out_as_it_is(make_online_run, notebook) -> None:
    def broken(completions):
        raise KeyError("gold")

    run, _ = make_online_run({"reward": FunctionReward(broken, time_limit_s=WAIT_S)})
    with pytest.raises(RewardError, match="gold"):
        online.fit(run, 1, notebook(), quiet)
    assert run.engine.step == 0


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_a_reward_that_hangs_holds_up_neither_failure_nor_interrupt(make_online_run, notebook, asked, failure) -> None:
    released = threading.Event()

    def hanging(completions):
        released.wait(WAIT_S)
        return [0.0] * len(completions)

    def on_consult(roles):
        raise failure("now")

    run, _ = make_online_run({"reward": FunctionReward(hanging, time_limit_s=WAIT_S)})
    asked(run, on_consult)
    with pytest.raises(failure, match="now"):
        online.fit(run, 1, notebook(), quiet)
    assert not released.is_set()
    released.set()


def test_the_critic_is_asked_after_its_head_was_calibrated(make_online_run, notebook, asked) -> None:
    order = []
    run, _ = make_online_run({"on_first_rewards": lambda batch: order.append("calibrated")}, critic="adapter")
    assert recorded_value_head(run.engine.roles) is None, "a critic with a trunk of its own"
    asked(run, order.append)
    online.fit(run, 2, notebook(), quiet)
    assert order[:3] == [(Role.REFERENCE,), "calibrated", (Role.CRITIC,)]
    assert (Role.REFERENCE, Role.CRITIC) in order[3:]


def test_recorded_values_are_the_critics_and_it_is_not_asked(make_online_run, notebook, asked) -> None:
    kept = []
    run, _ = make_online_run({"record": lambda step, batch: kept.append(batch)}, learning_rate=0.01)
    recording(run)
    calls = asked(run)
    real, found = online.learn, []

    def learn(run, iteration, batch, *rest):
        consulted = type(run.engine).consult(run.engine, (Role.CRITIC,), batch)
        found.append((batch.values, consulted.values, batch.loss_mask))
        return real(run, iteration, batch, *rest)

    for iteration in range(3):
        watch = Pace()
        learn(run, iteration, online.experience(run, iteration, watch, quiet), watch, quiet)
    assert all(Role.CRITIC not in roles and Role.ACTOR not in roles for roles in calls)
    for recorded, consulted, mask in found:
        torch.testing.assert_close(recorded, consulted, atol=1e-5, rtol=0)
        assert recorded[~mask].eq(0).all()
    assert found[0][0].eq(0).all(), "a fresh head"
    assert found[2][0][found[2][2]].unique().numel() > 5, "one that has learned says something of each token"


def test_a_run_with_recorded_values_learns_what_one_with_consulted_ones_does(make_online_run, notebook) -> None:
    logs = []
    for is_recording in (True, False):
        run, _ = make_online_run(learning_rate=0.01)
        notes = notebook()
        online.fit(recording(run) if is_recording else run, 3, notes, quiet)
        logs.append(notes.stats)
    for mine, other in zip(*logs, strict=True):
        for name in ("loss", "value_loss", "kl", "grad_norm", "explained_variance"):
            if name in mine:
                assert mine[name] == pytest.approx(other[name], abs=1e-3, rel=1e-3), name


def test_values_are_recorded_in_full_precision_only(make_online_run) -> None:
    run, _ = make_online_run()
    assert recorded_value_head(run.engine.roles) is run.engine.roles.head("value")
    run.engine.roles.backbone.to(torch.bfloat16)
    assert recorded_value_head(run.engine.roles) is None
