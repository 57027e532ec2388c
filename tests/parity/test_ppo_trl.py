"""Our PPO against TRL 0.9.6, on the fixture that ``make_ppo_fixture.py`` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import PPO
from posttrain.functional import kl_estimate, masked_mean, token_logprobs, whiten
from posttrain.types import AlgorithmState, Outputs, Role, RolloutBatch

FIXTURE = json.loads(Path(__file__).with_name("ppo_trl_0_9_6.json").read_text(encoding="utf-8"))
INPUTS = {name: torch.tensor(value) for name, value in FIXTURE["inputs"].items()}
SETTINGS = FIXTURE["settings"]
MASK = INPUTS["mask"].bool()


def close(actual: Tensor, expected: Any) -> None:
    """Equal to 1e-5 on the positions that count: TRL leaves leftovers outside."""
    torch.testing.assert_close(actual[MASK], torch.tensor(expected)[MASK], atol=1e-5, rtol=1e-5)


def ppo(**overrides: Any) -> PPO:
    settings = {
        "kl_coef": SETTINGS["kl_coef"],
        "kl_target": SETTINGS["kl_target"],
        "kl_horizon": SETTINGS["kl_horizon"],
        "clip": SETTINGS["cliprange"],
        "value_clip": SETTINGS["cliprange_value"],
        "value_coef": SETTINGS["vf_coef"],
        "gamma": SETTINGS["gamma"],
        "gae_lambda": SETTINGS["lam"],
    }
    return PPO(**{**settings, **overrides})


def rollout(mask: Tensor = MASK) -> RolloutBatch:
    return RolloutBatch(
        input_ids=torch.zeros_like(mask, dtype=torch.long),
        attention_mask=mask,
        loss_mask=mask,
        logprobs=INPUTS["old_logprobs"],
        ref_logprobs=INPUTS["ref_logprobs"],
        values=INPUTS["values"],
        rewards=INPUTS["scores"],
        ended=torch.ones(len(mask), dtype=torch.bool),
    )


def test_the_fixture_says_where_it_comes_from() -> None:
    assert FIXTURE["versions"]["trl"] == "0.9.6"


@pytest.mark.parametrize(("name", "shift_mean"), [("whiten", True), ("whiten_keep_mean", False)])
def test_whiten(name: str, shift_mean: bool) -> None:
    close(whiten(INPUTS["values"], MASK, shift_mean=shift_mean), FIXTURE[name])


@pytest.mark.parametrize("kind", ["k1", "k2", "abs"])
def test_kl_penalties(kind: Any) -> None:
    close(kl_estimate(INPUTS["old_logprobs"], INPUTS["ref_logprobs"], kind), FIXTURE["credit"][kind]["kl"])


@pytest.mark.parametrize("kind", ["k1", "k2", "abs"])
def test_credit(kind: Any) -> None:
    algorithm = ppo(kl_estimator=kind)
    batch, state = algorithm.credit(rollout(), algorithm.initial_state())
    expected = FIXTURE["credit"][kind]
    assert batch.advantages is not None
    assert batch.returns is not None
    close(batch.advantages, expected["advantages"])
    close(batch.returns, expected["returns"])
    assert state.kl_coef == pytest.approx(expected["next_kl_coef"], rel=1e-6)
    assert algorithm.statistics(batch, state)["kl"] == pytest.approx(expected["sequence_kl"], abs=1e-5)


def test_credit_with_whitened_rewards_and_no_padding() -> None:
    algorithm = ppo(whiten_rewards=True)
    batch, _ = algorithm.credit(rollout(torch.ones_like(MASK)), algorithm.initial_state())
    for actual, name in ((batch.advantages, "advantages"), (batch.returns, "returns")):
        expected = torch.tensor(FIXTURE["credit_whiten_rewards"][name])
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_losses_and_clip_fractions() -> None:
    algorithm, expected = ppo(), FIXTURE["losses"]
    batch, _ = algorithm.credit(rollout(), algorithm.initial_state())
    actor = algorithm.loss(Role.ACTOR, Outputs(logprobs=INPUTS["old_logprobs"] + INPUTS["log_ratio"]), batch)
    critic = algorithm.loss(Role.CRITIC, Outputs(values=INPUTS["values"] + INPUTS["value_change"]), batch)
    actual = {
        "policy_loss": masked_mean(actor.loss, MASK),
        "value_loss_times_coef": masked_mean(critic.loss, MASK),
        "clip_fraction": masked_mean(actor.metrics["clip_fraction"], MASK),
        "value_clip_fraction": masked_mean(critic.metrics["value_clip_fraction"], MASK),
    }
    for name, value in actual.items():
        assert float(value) == pytest.approx(expected[name], abs=1e-5), name
    assert 0 < expected["clip_fraction"] < 1
    assert 0 < expected["value_clip_fraction"] < 1


def test_entropy_of_logits() -> None:
    logits = INPUTS["logits"].flatten(0, 1)  # [B * T, V], hidden states of an identity head
    _, entropy = token_logprobs(logits, torch.eye(logits.shape[1]), torch.zeros(len(logits), dtype=torch.long))
    assert float(masked_mean(entropy.view_as(MASK), MASK)) == pytest.approx(FIXTURE["losses"]["entropy"], abs=1e-5)


def test_running_normalisation_of_rewards() -> None:
    algorithm, state = ppo(normalize_rewards=True), AlgorithmState()
    for name, expected in zip(("scores", "later_scores"), FIXTURE["running"], strict=True):
        _, state = algorithm.credit(rollout().with_columns(rewards=INPUTS[name]), state)
        assert state.reward_mean == pytest.approx(expected["mean"], abs=1e-5)
        assert (state.reward_m2 / (state.reward_count - 1)) ** 0.5 == pytest.approx(expected["std"], abs=1e-5)
