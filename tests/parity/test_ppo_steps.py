"""Our engine and PPO against the first optimizer steps of TRL 0.9.6, which ``make_ppo_steps.py`` wrote down.

TRL's column t is our column t + 1: it stores the log-probability of a token where the token before it stands.
"""

from __future__ import annotations

import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import PPO
from posttrain.engine import Engine, OptimizerSettings
from posttrain.functional import kl_estimate, masked_mean
from posttrain.functional.masked import masked_variance
from posttrain.models.forward import prepare_trunk
from posttrain.models.heads import ScalarHead
from posttrain.models.roles import Costume, SharedRoles
from posttrain.models.separate import SeparateRoles
from posttrain.types import Role, RolloutBatch

HERE = Path(__file__).parent
FIXTURE = json.loads((HERE / "ppo_steps_trl_0_9_6.json").read_text(encoding="utf-8"))
MAKER = runpy.run_path(str(HERE / "make_ppo_steps.py"))
SCENARIOS = ("adaptive_kl", "normalised_scores", "whitened_rewards")

# Both compute in float32, in another order. What was found: 2e-6 in columns, 4e-7 in figures, 5e-7 in weights and
# 3e-6 of the way of a weight. Adam divides by the gradient's own size, which passes rounding on to weights magnified.
COLUMNS = {"atol": 1e-5, "rtol": 1e-5}
FIGURES = {"abs": 5e-6, "rel": 1e-5}
WEIGHTS = {"abs": 1e-5, "rel": 1e-5}  # a three-hundredth of the learning rate, after two to twelve optimizer steps
WAY = {"abs": 0.0, "rel": 1e-4}


def algorithm(settings: dict[str, Any]) -> PPO:
    """Our PPO with TRL's settings."""
    return PPO(
        kl_coef=settings["init_kl_coef"],
        kl_target=settings["target"] if settings["adap_kl_ctrl"] else None,
        kl_horizon=settings["horizon"],
        clip=settings["cliprange"],
        value_clip=settings["cliprange_value"],
        value_coef=settings["vf_coef"],
        gamma=settings["gamma"],
        gae_lambda=settings["lam"],
        normalize_rewards=settings.get("use_score_norm", False),
        reward_clip=settings.get("score_clip"),
        whiten_rewards=settings.get("whiten_rewards", False),
    )


def make_engine(scenario: dict[str, Any]) -> Engine:
    """A model whose every weight trains, a value head on its trunk, and a frozen reference beside it.

    No decay, no clipping, a constant learning rate; micro-batches so small that every minibatch is cut.
    """
    policy, reference = (MAKER["language_model"](scenario["family"]) for _ in range(2))
    if scenario["reference"] == "other":
        MAKER["other"](dict(reference.named_parameters()))
    assert prepare_trunk(policy)
    assert prepare_trunk(reference)
    head = ScalarHead(16, "value")
    MAKER["fill"]({"summary.weight": head.weight, "summary.bias": head.bias}, seed=1)
    trained = {
        Role.ACTOR: Costume(wears=(), head="lm_head", trains="base"),
        Role.CRITIC: Costume(wears=(), head="value", trains="base"),
    }
    names = frozenset(name for name, _ in policy.named_parameters())
    frozen = {Role.REFERENCE: Costume(wears=(), head="lm_head")}
    members = {
        "policy": SharedRoles(policy, trained, {"value": head}, base_trains=names),
        "reference": SharedRoles(reference, frozen, {}),
    }
    settings = OptimizerSettings(learning_rate=scenario["settings"]["learning_rate"], max_grad_norm=0.0)
    ppo = algorithm(scenario["settings"])
    return Engine(SeparateRoles(members), ppo, settings, lambda step: 1.0, max_tokens=16)


def rollout(given: dict[str, Any]) -> RolloutBatch:
    """TRL's queries, responses and scores as a batch, the sampler's log-probabilities still missing."""
    rows = list(zip(given["queries"], given["responses"], strict=True))
    width = max(len(query) + len(response) for query, response in rows)
    ids = torch.tensor([q + r + [0] * (width - len(q) - len(r)) for q, r in rows])
    columns = torch.arange(width)
    ends = torch.tensor([[len(q) + len(r)] for q, r in rows])
    starts = torch.tensor([[len(q)] for q, _ in rows])
    return RolloutBatch(
        input_ids=ids,
        attention_mask=columns < ends,
        loss_mask=(columns >= starts) & (columns < ends),
        logprobs=torch.zeros(ids.shape),
        ended=torch.ones(len(rows), dtype=torch.bool),
        rewards=torch.tensor(given["scores"]),
    )


@cache
def ours(name: str) -> list[dict[str, Any]]:
    """What our engine makes of every step of a scenario."""
    scenario = FIXTURE["scenarios"][name]
    engine, ppo = make_engine(scenario), algorithm(scenario["settings"])
    policy = dict(engine.roles.member(Role.ACTOR).named_parameters())
    start = {name: weight.detach().clone() for name, weight in policy.items()}
    steps = []
    for step in scenario["steps"]:
        batch = engine.consult((Role.ACTOR, *ppo.consults), rollout(step["given"]))
        before = engine.algorithm_state
        batch, engine.algorithm_state = ppo.credit(batch, before)
        updates = []
        size = scenario["settings"]["mini_batch_size"]
        for order in step["orders"]:
            for first in range(0, len(order), size):
                engine.accumulate(ppo, batch.rows(torch.tensor(order[first : first + size])))
                updates.append(engine.pending())
                engine.optimizer_step()
        weights = MAKER["digest"](policy, start)
        state = {"before": before, "after": engine.algorithm_state}
        kl = ppo.statistics(batch, before)["kl"]
        steps.append({"batch": batch, "kl": kl, "updates": updates, "weights": weights, **state})
    return steps


def pairs(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(TRL's, ours) of every step."""
    return list(zip(FIXTURE["scenarios"][name]["steps"], ours(name), strict=True))


def close(column: Tensor | None, expected: Any, mask: Tensor) -> None:
    """Equal where tokens count; TRL's columns begin at token 1."""
    assert column is not None
    counted = mask[:, 1:]
    torch.testing.assert_close(column[:, 1:][counted], torch.tensor(expected)[counted], **COLUMNS)


def our_name(name: str) -> str:
    """The name of TRL's parameter in our roles."""
    return name.replace("pretrained_model.", "backbone.").replace("v_head.summary.", "heads.value.")


def test_the_fixture_says_where_it_comes_from() -> None:
    assert FIXTURE["versions"]["trl"] == "0.9.6"
    assert set(FIXTURE["versions"]) == {"trl", "torch", "transformers", "accelerate", "python"}


def test_the_inputs_are_those_of_the_maker() -> None:
    for name, scenario in FIXTURE["scenarios"].items():
        for number, step in enumerate(scenario["steps"]):
            made = MAKER["experience"](number, even=scenario.get("even", False))
            assert MAKER["plain"](made) == step["given"], name


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("column", ["logprobs", "ref_logprobs", "values", "advantages", "returns"])
def test_columns(name: str, column: str) -> None:
    for expected, found in pairs(name):
        batch = found["batch"]
        assert batch.loss_mask[:, 1:].tolist() == torch.tensor(expected["mask"]).bool().tolist()
        close(getattr(batch, column), expected[column], batch.loss_mask)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scores_token_rewards_and_the_controller(name: str) -> None:
    ppo = algorithm(FIXTURE["scenarios"][name]["settings"])
    for expected, found in pairs(name):
        batch, before = found["batch"], found["before"]
        scores, _ = ppo.scores(batch, before)
        torch.testing.assert_close(scores, torch.tensor(expected["used_scores"]), **COLUMNS)
        rewards = -before.kl_coef * kl_estimate(batch.logprobs, batch.ref_logprobs, "k1")
        rewards[torch.arange(len(batch)), batch.lengths - 1] += scores
        if not ppo.whiten_rewards:
            close(rewards, expected["token_rewards"], batch.loss_mask)
        assert found["kl"] == pytest.approx(expected["kl"], **FIGURES)
        assert found["after"].kl_coef == pytest.approx(expected["next_kl_coef"], rel=1e-6)


@pytest.mark.parametrize("name", SCENARIOS)
def test_losses_entropy_and_clip_fractions_of_every_optimizer_step(name: str) -> None:
    names = {
        "policy_loss": "loss/PPO/actor",
        "value_loss_times_coef": "loss/PPO/critic",
        "policy/entropy": "entropy",
        "policy/clipfrac": "clip_fraction",
        "val/clipfrac": "value_clip_fraction",
    }
    clipped = []
    for expected, found in pairs(name):
        assert len(found["updates"]) == len(expected["updates"])
        for theirs, own in zip(expected["updates"], found["updates"], strict=True):
            for trl, mine in names.items():
                assert own[mine] == pytest.approx(theirs[trl], **FIGURES), trl
            clipped.append(theirs["policy/clipfrac"])
    assert 0 < max(clipped) < 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_weights_after_every_step(name: str) -> None:
    for expected, found in pairs(name):
        assert {our_name(theirs) for theirs in expected["weights"]} == set(found["weights"])
        for theirs, digest in expected["weights"].items():
            mine, name = found["weights"][our_name(theirs)], our_name(theirs)
            assert mine["entries"].tolist() == pytest.approx(digest["entries"], **WEIGHTS), name
            assert float(mine["norm"]) == pytest.approx(digest["norm"], **WEIGHTS), name
            assert digest["moved"] > 0
            assert float(mine["moved"]) == pytest.approx(digest["moved"], **WAY), name


def test_what_padding_does_to_whitened_rewards_in_trl() -> None:
    """TRL whitens with the mask but leaves c = mean − mean · rsqrt(var + ε) on the padding behind an answer.

    Its backward sum over advantages begins there, so token t of an answer that ends at position e, with n columns
    behind it, gains c Σ_{k = 1..n} (γλ)^(e − t + k). Ours begins at the last token. Nothing else differs.
    """
    scenario = FIXTURE["scenarios"]["whitened_rewards_padded"]
    expected, found = scenario["steps"][0], ours("whitened_rewards_padded")[0]
    batch, settings = found["batch"], scenario["settings"]
    raw = -settings["init_kl_coef"] * (batch.logprobs - batch.ref_logprobs)
    raw[torch.arange(len(batch)), batch.lengths - 1] += batch.rewards
    mean, variance = masked_mean(raw, batch.loss_mask), masked_variance(raw, batch.loss_mask)
    left = mean - mean * torch.rsqrt(variance + 1e-8)
    fade = settings["gamma"] * settings["lam"]
    columns = torch.arange(batch.input_ids.shape[1])
    until = batch.lengths[:, None] - 1 - columns  # [B, T] tokens up to the last one
    behind = columns[-1] + 1 - batch.lengths[:, None]
    leak = left * fade**until * fade * (1 - fade**behind) / (1 - fade)
    close(batch.returns + leak, expected["returns"], batch.loss_mask)
    assert float((leak * batch.loss_mask).abs().max()) > 0.1
