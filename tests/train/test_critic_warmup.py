"""The first iterations of PPO in which only what the critic alone trains moves."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from posttrain.rewards import ScriptedReward
from posttrain.train import online
from posttrain.types import Role


def quiet(name, done, total):
    """No progress bar."""


@pytest.fixture
def make(make_online_run):
    """PPO with two optimizer steps an iteration; the first two iterations are the critic's."""

    def make(critic="value_head", **keys):
        parts = {"reward": ScriptedReward(lambda ids: float(len(set(ids))))}
        run, _ = make_online_run(
            parts, **{"critic": critic, "critic_warmup_steps": 2, "learning_rate": 1e-2, "weight_decay": 0.1, **keys}
        )
        return run

    return make


def owned(run):
    """(weights that the actor trains, weights that the critic alone trains), as they are now."""
    actor, critic = (run.engine.roles.parameters_of(role) for role in (Role.ACTOR, Role.CRITIC))
    alone = {name: p for name, p in critic.items() if name not in actor}
    return tuple({name: p.detach().clone() for name, p in part.items()} for part in (actor, alone))


def moved(before, after):
    """Whether all of these moved (True), none (False), or some (None)."""
    changed = [not torch.equal(before[name], weight) for name, weight in after.items()]
    return {(True,): True, (False,): False}.get(tuple(sorted(set(changed))))


def with_state(run):
    """Names of the weights that the optimizer knows moments of."""
    return {name for name, p in run.engine._named().items() if run.engine.optimizer.state.get(p)}


@pytest.mark.parametrize("critic", ["value_head", "adapter"])
def test_the_critic_moves_first(make, notebook, critic) -> None:
    run = make(critic)
    actor, alone = owned(run)
    assert alone
    assert any("heads.value" in name for name in alone)
    notes = notebook()
    online.fit(run, 2, notes, quiet)
    assert run.engine.step == 4
    now_actor, now_alone = owned(run)
    assert moved(actor, now_actor) is False
    assert any(not torch.equal(alone[name], weight) for name, weight in now_alone.items())
    assert not with_state(run) & set(actor)
    assert with_state(run) == set(alone)
    # the policy is the one that sampled, in every minibatch
    assert [stats["approx_kl"] for stats in notes.stats] == pytest.approx([0, 0], abs=1e-6)
    assert [stats["kl_k3"] for stats in notes.stats] == pytest.approx([0, 0], abs=1e-6)
    online.fit(run, 3, notes, quiet)
    assert moved(now_actor, owned(run)[0]) is not False
    assert with_state(run) == set(actor) | set(alone)
    # its moments count its own steps: the first one is as long as any run's first
    steps = {name: float(run.engine.optimizer.state[p]["step"]) for name, p in run.engine._named().items()}
    assert {steps[name] for name in actor} == {2.0}
    assert {steps[name] for name in alone} == {6.0}


def test_the_head_alone_learns_the_values(make, notebook) -> None:
    """A constant reward: the value head comes nearer to it while the trunk stands still."""
    run = make(critic_warmup_steps=10, learning_rate=5e-2, clip_range_value=1e9, ppo_score_norm=False, kl_coef=0.0)
    run = dataclasses.replace(run, reward=ScriptedReward(lambda ids: 3.0))
    notes = notebook()
    online.fit(run, 6, notes, quiet)
    assert notes.stats[-1]["value_loss"] < 0.5 * notes.stats[0]["value_loss"]


def test_without_it_all_move_at_once(make, notebook) -> None:
    run = make(critic_warmup_steps=0)
    actor, alone = owned(run)
    online.fit(run, 1, notebook(), quiet)
    now_actor, now_alone = owned(run)
    assert moved(actor, now_actor) is not False
    assert moved(alone, now_alone) is not False


def test_a_checkpoint_inside_the_warm_up_goes_on_as_it_would_have(make, notebook, tmp_path) -> None:
    whole = make()
    for iteration in (1, 3):
        online.fit(whole, iteration, notebook(), quiet)
        if iteration == 1:
            whole.engine.save(tmp_path)
    again = make()
    again.engine.resume(tmp_path)
    assert not with_state(again) & set(owned(again)[0])
    online.fit(again, 3, notebook(), quiet)
    for mine, other in zip(owned(again), owned(whole), strict=True):
        assert all(torch.equal(weight, other[name]) for name, weight in mine.items())


def test_the_critic_has_a_learning_rate_of_its_own(make) -> None:
    run = make("adapter", value_learning_rate=3e-4)
    rates = {}
    for role in (Role.ACTOR, Role.CRITIC):
        for name, parameter in run.engine.roles.parameters_of(role).items():
            (group,) = [g for g in run.engine.optimizer.param_groups if any(p is parameter for p in g["params"])]
            rates[name] = (role, group["initial_lr"])
    assert {rate for role, rate in rates.values() if role is Role.CRITIC} == {3e-4}
    assert {rate for role, rate in rates.values() if role is Role.ACTOR} == {1e-2}
