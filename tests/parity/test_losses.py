"""Our losses and advantages against TRL's, on the fixtures that ``make_losses_trl_*.py`` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.functional import (
    cispo_loss,
    clipped_surrogate,
    cpo_loss,
    dpo_loss,
    group_relative,
    kl_estimate,
    kto_kl,
    kto_loss,
    leave_one_out,
    masked_mean,
    odds_ratio_loss,
    sequence_ratio_logprobs,
    simpo_loss,
)

NEW, OLD = (
    json.loads(Path(__file__).with_name(f"losses_trl_{version}.json").read_text(encoding="utf-8"))
    for version in ("1_16", "0_9_6")
)
SLOPES = ("chosen_slope", "rejected_slope")
ONLINE = {name: torch.tensor(value) for name, value in NEW["online"]["inputs"].items()}
MASK = ONLINE["mask"].bool()


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def pairs_close(losses: Tensor, sides: list[Tensor], expected: dict[str, Any]) -> None:
    """Every loss, and its slope along both answers."""
    close(losses.detach(), expected["loss"])
    for name, grad in zip(SLOPES, torch.autograd.grad(losses.sum(), sides), strict=True):
        close(grad, expected[name])


def test_the_fixtures_say_where_they_come_from() -> None:
    assert NEW["versions"]["trl"] == "1.16.0"
    assert OLD["versions"]["trl"] == "0.9.6"


@pytest.mark.parametrize("case", NEW["dpo"]["cases"])
def test_dpo_of_trl_1_16(case: str) -> None:
    kind, beta = case.split("/")
    given = {name: torch.tensor(value) for name, value in NEW["dpo"]["inputs"].items()}
    sums = {name: value.sum(dim=1) for name, value in given.items()}
    sides = [sums["chosen_logps"].requires_grad_(), sums["rejected_logps"].requires_grad_()]
    references = [sums["ref_chosen_logps"], sums["ref_rejected_logps"]]
    columns = [*sides, *references]
    if kind in ("ipo", "sigmoid_norm"):  # by means over tokens
        lengths = [sums["chosen_mask"], sums["rejected_mask"]] * 2
        columns = [column / length for column, length in zip(columns, lengths, strict=True)]
    smoothing = NEW["dpo"]["label_smoothing"] if kind in ("robust", "exo_pair") else 0.0
    ours: Any = kind.removesuffix("_norm")
    losses = dpo_loss(*columns, beta=float(beta), kind=ours, label_smoothing=smoothing)
    rows = NEW["dpo"]["cases"][case]
    pairs_close(losses, sides, {name: [row[name] for row in rows] for name in ("loss", *SLOPES)})


@pytest.mark.parametrize("name", NEW["kto"]["cases"])
def test_kto_of_trl_1_16(name: str) -> None:
    case, given = NEW["kto"]["cases"][name], NEW["kto"]["inputs"]
    logps = torch.tensor(given["logps"]).sum(dim=1).requires_grad_()
    kl = kto_kl(torch.tensor(given["mismatched_logps"]).sum(dim=1), torch.tensor(case["ref_mismatched_logps"]))
    close(kl, case["kl"])
    assert (case["kl"] == 0) == (name == "negative_kl")
    weights = {key: case[key] for key in ("beta", "desirable_weight", "undesirable_weight")}
    losses = kto_loss(logps, torch.tensor(case["ref_logps"]), torch.tensor(given["label"]), kl, **weights)
    close(losses.detach(), [row["loss"] for row in case["rows"]])
    (grad,) = torch.autograd.grad(losses.sum(), logps)
    close(grad, [row["slope"] for row in case["rows"]])


def policy_loss(case: dict[str, Any], logps: Tensor) -> tuple[Tensor, Tensor]:
    """Our per-token loss for TRL's settings, and where it is clipped."""
    old, advantages = ONLINE["old_logps"], ONLINE["advantages"][:, None].expand(MASK.shape)
    low, high = (case.get(name, NEW["online"][name]) for name in ("epsilon_low", "epsilon_high"))
    if case["loss_type"] == "cispo":  # its epsilon_high is the bound itself, and there is none from below
        return cispo_loss(logps, old, advantages, clip_low=1.0, clip_high=high - 1)
    if case.get("importance_sampling_level") == "sequence":
        ratios = sequence_ratio_logprobs(logps, old, MASK)
        return clipped_surrogate(ratios, torch.zeros_like(old), advantages, clip_low=low, clip_high=high)
    return clipped_surrogate(logps, old, advantages, clip_low=low, clip_high=high, dual_clip=case.get("delta"))


def reduced(loss: Tensor, loss_type: str) -> Tensor:
    """What each of TRL's loss types divides by."""
    if loss_type == "grpo":
        return masked_mean(loss, MASK, dim=1).mean()
    if loss_type == "dr_grpo":
        return loss[MASK].sum() / (len(MASK) * NEW["online"]["max_completion_length"])
    return masked_mean(loss, MASK)


@pytest.mark.parametrize("name", NEW["grpo"])
def test_grpo_of_trl_1_16(name: str) -> None:
    case = NEW["grpo"][name]
    logps = ONLINE["logps"].clone().requires_grad_()
    loss, clipped = policy_loss(case, logps)
    if beta := case.get("beta"):
        kl = kl_estimate(logps, ONLINE["ref_logps"], "k3")
        close(masked_mean(kl, MASK).detach(), case["metrics"]["kl"])
        loss = loss + beta * kl
    total = reduced(loss, case["loss_type"])
    close(total.detach(), case["loss"])
    (grad,) = torch.autograd.grad(total, logps)
    close(grad, case["grad"])
    fraction = case["metrics"].get("clip_ratio/region_mean")
    if fraction is not None and "delta" not in case:  # TRL does not count what its second bound stops
        counted = clipped[:, 0] if name == "gspo" else clipped[MASK]
        close(counted.float().mean(), fraction)
        assert 0 < fraction < 1


def test_the_second_bound_of_trl_1_16_stops_something() -> None:
    assert NEW["grpo"]["grpo_delta"]["loss"] != NEW["grpo"]["grpo"]["loss"]
    assert NEW["grpo"]["cispo"]["metrics"]["cispo_clip_ratio"] > 0


def test_rloo_of_trl_1_16() -> None:
    case = NEW["rloo"]
    logps = torch.tensor(case["logps"]).requires_grad_()
    whole, old = (torch.where(MASK, x, 0.0).sum(dim=1) for x in (logps, ONLINE["old_logps"]))
    low, high = NEW["online"]["epsilon_low"], NEW["online"]["epsilon_high"]
    loss, clipped = clipped_surrogate(whole, old, ONLINE["advantages"], clip_low=low, clip_high=high)
    close(loss.mean().detach(), case["loss"])
    (grad,) = torch.autograd.grad(loss.mean(), logps)
    close(grad, case["grad"])
    close(clipped.float().mean(), case["clip_fraction"])
    assert 0 < case["clip_fraction"] < 1
    # the same, as a ratio that stands on every token
    ratios = sequence_ratio_logprobs(logps, ONLINE["old_logps"], MASK, normalize=False)
    advantages = ONLINE["advantages"][:, None].expand(MASK.shape)
    tokens, _ = clipped_surrogate(ratios, torch.zeros(MASK.shape), advantages, clip_low=low, clip_high=high)
    total = masked_mean(tokens, MASK, dim=1).mean()
    close(total.detach(), case["loss"])
    close(torch.autograd.grad(total, logps)[0], case["grad"])


def test_grpo_advantages_of_trl_1_16() -> None:
    expected, rewards, size = NEW["grpo_advantages"], ONLINE["rewards"], NEW["online"]["group_size"]
    close(group_relative(rewards, size, scale_by_std=True), expected["group"])
    centred = group_relative(rewards, size, scale_by_std=False)
    close(centred, expected["none"])
    close(centred / (rewards.std() + 1e-4), expected["batch"])


@pytest.mark.parametrize("name", NEW["rloo_advantages"])
def test_rloo_advantages_of_trl_1_16(name: str) -> None:
    settings, rewards = NEW["rloo_settings"][name], ONLINE["rewards"]
    if bounds := settings.get("reward_clip_range"):
        rewards = rewards.clamp(*bounds)
    kl = torch.where(MASK, kl_estimate(ONLINE["old_logps"], ONLINE["ref_logps"], "k1"), 0.0).sum(dim=1)
    advantages = leave_one_out(rewards - settings.get("beta", 0.0) * kl, NEW["online"]["group_size"])
    if settings.get("normalize_advantages"):
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-4)
    close(advantages, NEW["rloo_advantages"][name])


def old_columns(*names: str) -> list[Tensor]:
    return [torch.tensor(OLD["inputs"][name]) for name in names]


def test_orpo_of_trl_0_9_6() -> None:
    sides = [x.requires_grad_() for x in old_columns("chosen_mean", "rejected_mean")]
    # TRL subtracts this from the negative log-likelihood, so ours is added with the weight beta
    pairs_close(-OLD["orpo"]["beta"] * odds_ratio_loss(*sides), sides, OLD["orpo"])


@pytest.mark.parametrize("name", ["sigmoid", "smoothed", "hinge"])
def test_cpo_of_trl_0_9_6(name: str) -> None:
    case, sides = OLD["cpo"][name], [x.requires_grad_() for x in old_columns("chosen", "rejected")]
    settings = {"beta": case["beta"], "kind": case["loss_type"], "label_smoothing": case["label_smoothing"]}
    pairs_close(cpo_loss(*sides, **settings), sides, case)


def test_simpo_of_trl_0_9_6() -> None:
    case, sides = OLD["cpo"]["simpo"], [x.requires_grad_() for x in old_columns("chosen_mean", "rejected_mean")]
    pairs_close(simpo_loss(*sides, beta=case["beta"], gamma=case["simpo_gamma"]), sides, case)


@pytest.mark.parametrize("name", OLD["dpo"])
def test_dpo_with_smoothed_labels_of_trl_0_9_6(name: str) -> None:
    case, sides = OLD["dpo"][name], [x.requires_grad_() for x in old_columns("chosen", "rejected")]
    settings = {"beta": case["beta"], "kind": case["loss_type"], "label_smoothing": case["label_smoothing"]}
    pairs_close(dpo_loss(*sides, *old_columns("ref_chosen", "ref_rejected"), **settings), sides, case)
