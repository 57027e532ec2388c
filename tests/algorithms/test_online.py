"""What holds for every algorithm that samples its own text; PPO, which has a critic, does the same in test_ppo."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.algorithms import GRPO, RLOO, OnlineDPO, Reinforce, RejectionSampling, ReMax
from posttrain.types import Outputs, Role, RolloutBatch

CASES: dict[str, Any] = {
    "rloo": RLOO(group_size=2, normalize_rewards=True, entropy_coef=0.1),
    "rloo whitened": RLOO(group_size=2, whiten_advantages=True, kl_target=0.5),
    "grpo": GRPO(group_size=2, entropy_coef=0.1),
    "grpo by the batch": GRPO(group_size=2, scale_rewards="batch", kl_in="reward"),
    "dr. grpo": GRPO(group_size=2, scale_rewards="none", loss_average="budget", budget=9, reward_clip=1.0),
    "gspo": GRPO(group_size=2, importance="sequence", dual_clip=2.0),
    "cispo": GRPO(group_size=2, policy_loss="cispo", loss_average="token", kl_estimator="k2"),
    "reinforce": Reinforce(gamma=0.9, kl_estimator="k2"),
    "reinforce with groups": Reinforce(baseline="group", group_size=2, kl_in="loss"),
    "remax": ReMax(normalize_rewards=True, group_size=2),
    "online dpo": OnlineDPO(group_size=2, kl_coef=0.1),
    "rejection": RejectionSampling(group_size=2, reward_threshold=-9.0),
}
examples = settings(deadline=None, max_examples=8)


def random_batch(rollout: Any, seed: int, prompts: int, width: int) -> RolloutBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rows = 2 * prompts
    mask = torch.rand(rows, width, generator=generator) < 0.7
    mask[:, 0], mask[:, 1] = False, True
    columns = {"logprobs": draw(rows, width), "ref_logprobs": draw(rows, width)}
    return rollout(mask, **columns, rewards=draw(rows), baseline_rewards=draw(rows))


def new_outputs(batch: RolloutBatch, seed: int) -> Outputs:
    noise = torch.randn(2, *batch.loss_mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Outputs(logprobs=batch.logprobs + 0.3 * noise[0], entropy=noise[1].abs())


def spoilt(x: Tensor, mask: Tensor, padding: int) -> Tensor:
    """The column with NaN wherever the mask is False, and in further columns behind."""
    return torch.cat([torch.where(mask, x, torch.nan), x.new_full((len(x), padding), torch.nan)], dim=1)


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 9999), prompts=st.integers(1, 3), width=st.integers(2, 5), padding=st.integers(1, 3))
@examples
def test_padding_and_nan_outside_the_mask_change_nothing(rollout, name, seed, prompts, width, padding) -> None:
    algorithm = CASES[name]
    batch = random_batch(rollout, seed, prompts, width)
    mask, out = batch.loss_mask, new_outputs(batch, seed)
    wide = rollout(
        torch.cat([mask, mask.new_zeros(len(batch), padding)], dim=1),
        logprobs=spoilt(batch.logprobs, mask, padding),
        ref_logprobs=spoilt(batch.ref_logprobs, mask, padding),
        rewards=batch.rewards,
        baseline_rewards=batch.baseline_rewards,
    )
    start = algorithm.initial_state()
    narrow, state = algorithm.credit(batch, start)
    broad, wide_state = algorithm.credit(wide, start)
    assert vars(wide_state) == pytest.approx(vars(state))
    torch.testing.assert_close(broad.advantages[:, :width], narrow.advantages)
    assert not broad.advantages[:, width:].any()
    assert not broad.advantages[:, :width][~mask].any()
    assert algorithm.statistics(broad, start) == pytest.approx(algorithm.statistics(narrow, start))

    broad = broad.with_columns(advantages=spoilt(narrow.advantages, mask, padding))
    if broad.trains is not None:
        index = broad.trains.nonzero().squeeze(1)
        narrow, broad, mask = narrow.rows(index), broad.rows(index), mask[index]
        out = Outputs(logprobs=out.logprobs[index], entropy=out.entropy[index])
    logprobs = out.logprobs.clone().requires_grad_()
    wide_logprobs = spoilt(out.logprobs, mask, padding).requires_grad_()
    plain = algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs, entropy=out.entropy), narrow)
    spread = spoilt(out.entropy, mask, padding)
    other = algorithm.loss(Role.ACTOR, Outputs(logprobs=wide_logprobs, entropy=spread), broad)

    def cut(x: Tensor) -> Tensor:
        return x[:, :width] if x.dim() == 2 else x

    for mine, theirs in ((plain.loss, other.loss), *((v, other.metrics[k]) for k, v in plain.metrics.items())):
        torch.testing.assert_close(cut(theirs), mine)
        assert theirs.shape == other.loss.shape
        assert theirs.dim() == 1 or not theirs[:, width:].any()
    assert not any(value.requires_grad for value in plain.metrics.values())
    (grad,) = torch.autograd.grad(plain.loss.sum(), logprobs)
    (wide_grad,) = torch.autograd.grad(other.loss.sum(), wide_logprobs)
    torch.testing.assert_close(wide_grad[:, :width], grad)
    assert not wide_grad[:, width:].any()
    assert not wide_grad[:, :width][~mask].any()


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 9999), prompts=st.integers(2, 4))
@examples
def test_permuting_prompts_permutes_credit_and_losses(rollout, name, seed, prompts) -> None:
    algorithm = CASES[name]
    batch = random_batch(rollout, seed, prompts, 4)
    order = torch.randperm(prompts, generator=torch.Generator().manual_seed(seed))
    index = (2 * order[:, None] + torch.arange(2)).reshape(-1)
    credited, state = algorithm.credit(batch, algorithm.initial_state())
    shuffled, other_state = algorithm.credit(batch.rows(index), algorithm.initial_state())
    torch.testing.assert_close(shuffled.advantages, credited.advantages[index])
    assert vars(other_state) == pytest.approx(vars(state))
    if credited.trains is not None:
        assert torch.equal(shuffled.trains, credited.trains[index])
    if isinstance(algorithm, OnlineDPO):
        return
    out = new_outputs(batch, seed)
    term = algorithm.loss(Role.ACTOR, out, credited)
    part = algorithm.loss(
        Role.ACTOR, Outputs(logprobs=out.logprobs[index], entropy=out.entropy[index]), credited.rows(index)
    )
    torch.testing.assert_close(part.loss, term.loss[index])


@pytest.mark.parametrize("name", CASES)
def test_credit_writes_its_own_columns_only(siblings, name) -> None:
    algorithm = CASES[name]
    found, state = algorithm.credit(siblings, algorithm.initial_state())
    changed = {
        field.name
        for field in dataclasses.fields(RolloutBatch)
        if getattr(found, field.name) is not getattr(siblings, field.name)
    }
    chooses = isinstance(algorithm, OnlineDPO | RejectionSampling)
    assert changed == ({"advantages", "trains"} if chooses else {"advantages"})
    assert state.iterations == 1
    assert state.reward_count == (4 if algorithm.normalize_rewards else 0)
    statistics = algorithm.statistics(found, algorithm.initial_state())
    assert statistics["kl_coef"] == algorithm.kl_coef
    assert ("trained_share" in statistics) == chooses
    assert "explained_variance" not in statistics


@pytest.mark.parametrize("name", CASES)
def test_only_the_actor_trains_and_the_reference_is_asked(name) -> None:
    algorithm = CASES[name]
    assert algorithm.trains == (Role.ACTOR,)
    assert algorithm.consults == (Role.REFERENCE,)
    assert algorithm.greedy_baseline is (name == "remax")
    assert algorithm.trained_group % algorithm.rows_together == 0


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("online dpo", "rejection")])
def test_before_any_update_the_ratio_is_one_and_good_completions_rise(siblings, name) -> None:
    """The step-0 gate sees 1 whatever is averaged; a token's gradient has the sign of its advantage."""
    algorithm = dataclasses.replace(CASES[name], kl_coef=0.0, entropy_coef=0.0)
    batch, _ = algorithm.credit(siblings, algorithm.initial_state())
    logprobs = batch.logprobs.clone().requires_grad_()
    term = algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs), batch)
    expected = batch.loss_mask.double() if term.unit == "token" else torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(term.metrics["ratio"], expected)
    assert not term.metrics["clip_fraction"].any()
    assert term.metrics["approx_kl"].abs().max() < 1e-12
    (grad,) = torch.autograd.grad(term.loss.sum(), logprobs)
    assert torch.equal(grad.sign(), -batch.advantages.sign())
    assert grad.abs().max() > 0.01
