from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.algorithms import PPO
from posttrain.functional import gae, masked_mean, masked_variance, whiten
from posttrain.types import AlgorithmState, Outputs, Role, RolloutBatch

PLAIN = PPO(kl_coef=0.5, kl_target=None, gamma=1.0, gae_lambda=1.0, whiten_advantages=False)


def rollout(mask: Tensor, **columns: Tensor) -> RolloutBatch:
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    filled = {"logprobs": zeros, "ref_logprobs": zeros, "values": zeros, "rewards": zeros.sum(dim=1), **columns}
    ended = filled.pop("ended", torch.ones(len(mask), dtype=torch.bool))
    return RolloutBatch(
        input_ids=torch.zeros(mask.shape, dtype=torch.long),
        attention_mask=torch.ones_like(mask),
        loss_mask=mask,
        ended=ended,
        prompts=("",) * len(mask),
        completions=("",) * len(mask),
        extras=({},) * len(mask),
        logprobs=filled.pop("logprobs"),
    ).with_columns(**filled)


def by_hand() -> RolloutBatch:
    """Two sequences, prompt first, the second one shorter: (prompt, y0, y1, y2), (prompt, y0, pad, pad)."""
    return rollout(
        torch.tensor([[False, True, True, True], [False, True, False, False]]),
        logprobs=torch.tensor([[9.0, -1.0, -2.0, -1.0], [9.0, -1.0, 9.0, 9.0]], dtype=torch.float64),
        ref_logprobs=torch.tensor([[7.0, -2.0, -2.0, -2.0], [7.0, -3.0, 7.0, 7.0]], dtype=torch.float64),
        values=torch.tensor([[5.0, 1.0, 2.0, 3.0], [5.0, 4.0, 5.0, 5.0]], dtype=torch.float64),
        rewards=torch.tensor([10.0, -4.0], dtype=torch.float64),
    )


def random_rollout(seed: int, rows: int, width: int) -> RolloutBatch:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(3, rows, width, dtype=torch.float64, generator=generator)
    rewards = torch.randn(rows, dtype=torch.float64, generator=generator)
    mask = torch.rand(rows, width, generator=generator) < 0.7
    mask[0, 0] = True
    return rollout(mask, logprobs=table[0], ref_logprobs=table[1], values=table[2], rewards=rewards)


def new_outputs(batch: RolloutBatch, seed: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed + 1)
    noise = torch.randn(3, *batch.loss_mask.shape, dtype=torch.float64, generator=generator)
    return Outputs(logprobs=batch.logprobs + 0.3 * noise[0], values=noise[1], entropy=noise[2].abs())


def test_credit_by_hand() -> None:
    # KL 1, 0, 1 and 2; with 0.5: rewards -0.5, 0, -0.5 + 10 and -1 - 4
    # returns with gamma = lam = 1 are sums to come: 9, 9.5, 9.5 and -5; advantages subtract 1, 2, 3 and 4
    batch, state = PLAIN.credit(by_hand(), PLAIN.initial_state())
    assert batch.returns is not None
    assert batch.advantages is not None
    assert batch.returns.tolist() == [[0.0, 9.0, 9.5, 9.5], [0.0, -5.0, 0.0, 0.0]]
    assert batch.advantages.tolist() == [[0.0, 8.0, 7.5, 6.5], [0.0, -9.0, 0.0, 0.0]]
    assert state == AlgorithmState(kl_coef=0.5, iterations=1)


def test_credit_uses_the_coefficient_of_the_state() -> None:
    # coefficient 0: only the score is left, and the state keeps moving on
    batch, state = PLAIN.credit(by_hand(), AlgorithmState(kl_coef=0.0, iterations=4))
    assert batch.returns is not None
    assert batch.returns.tolist() == [[0.0, 10.0, 10.0, 10.0], [0.0, -4.0, 0.0, 0.0]]
    assert state.iterations == 5


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # per sequence: d = (1, 0, 1) and (2); the last token's own penalty is part of its reward
        ("k1", [9.0, -5.0]),
        ("abs", [9.0, -5.0]),
        ("k2", [10 - 0.5 * (0.5 + 0.5), -4 - 0.5 * 2.0]),
        ("k3", [10 - 0.5 * 2 * math.exp(-1), -4 - 0.5 * (math.exp(-2) + 1)]),
    ],
)
def test_kl_estimators_in_the_reward(kind: Any, expected: list[float]) -> None:
    batch, _ = dataclasses.replace(PLAIN, kl_estimator=kind).credit(by_hand(), PLAIN.initial_state())
    assert batch.returns is not None
    assert batch.returns[:, 1].tolist() == pytest.approx(expected)


def test_adaptive_coefficient_by_hand() -> None:
    # mean KL per sequence: (2 + 2) / 2 = 2; n = 2, horizon 10
    def after(target: float | None) -> float:
        algorithm = dataclasses.replace(PLAIN, kl_target=target, kl_horizon=10)
        return algorithm.credit(by_hand(), AlgorithmState(kl_coef=0.5))[1].kl_coef

    assert after(None) == 0.5
    # 2 / 2 - 1 = 0; 2 / 1.6 - 1 = 0.25 -> 0.2; 2 / 4 - 1 -> -0.2; 2 / 2.5 - 1 = -0.2 exactly; 2 / 1.9 - 1 = 0.0526
    assert after(2.0) == pytest.approx(0.5)
    assert after(1.6) == pytest.approx(0.5 * (1 + 0.2 * 2 / 10))
    assert after(4.0) == pytest.approx(0.5 * (1 - 0.2 * 2 / 10))
    assert after(1.9) == pytest.approx(0.5 * (1 + (2 / 1.9 - 1) * 2 / 10))


def test_reward_clip_and_normalisation_by_hand() -> None:
    def last_returns(state: AlgorithmState, **changes: Any) -> tuple[list[float], AlgorithmState]:
        algorithm = dataclasses.replace(PLAIN, **changes)
        batch, moved = algorithm.credit(by_hand(), dataclasses.replace(state, kl_coef=0.0))
        assert batch.returns is not None
        return batch.returns[:, 1].tolist(), moved

    start = AlgorithmState()
    assert last_returns(start, reward_clip=6.0)[0] == [6.0, -4.0]
    # rewards 10, -4: mean 3, deviations 7 and -7, unbiased std sqrt(98)
    normalised, moved = last_returns(start, normalize_rewards=True)
    unit = 7 / math.sqrt(98)
    assert normalised == pytest.approx([unit, -unit])
    assert (moved.reward_count, moved.reward_mean, moved.reward_m2) == pytest.approx((2, 3, 98))
    # the clip acts on the normalised scores
    assert last_returns(start, normalize_rewards=True, reward_clip=0.5)[0] == pytest.approx([0.5, -0.5])
    # seen before: 6 rewards of 3, which leaves mean 3 and M2 98 over 8
    seen = AlgorithmState(reward_count=6, reward_mean=3.0)
    normalised, moved = last_returns(seen, normalize_rewards=True)
    assert normalised == pytest.approx([7 / math.sqrt(98 / 7), -7 / math.sqrt(98 / 7)])
    assert moved.reward_count == 8


def test_whitening_of_rewards_and_advantages() -> None:
    batch = by_hand()
    mask = batch.loss_mask
    rewards = torch.tensor([[0.0, -0.5, 0.0, 9.5], [0.0, -5.0, 0.0, 0.0]], dtype=torch.float64)
    assert batch.values is not None
    values = torch.where(mask, batch.values, 0.0)
    algorithm = dataclasses.replace(PLAIN, whiten_rewards=True, whiten_advantages=True, gamma=0.9, gae_lambda=0.8)
    credited, _ = algorithm.credit(batch, PLAIN.initial_state())
    expected, returns = gae(whiten(rewards, mask, shift_mean=False), values, mask, gamma=0.9, lam=0.8)
    torch.testing.assert_close(credited.returns, returns)
    torch.testing.assert_close(credited.advantages, whiten(expected, mask))
    assert credited.advantages is not None
    assert masked_mean(credited.advantages, mask).item() == pytest.approx(0)
    assert masked_variance(credited.advantages, mask).item() == pytest.approx(1)


def test_the_actor_loss_by_hand() -> None:
    # advantages 8, 7.5, 6.5, -9; ratios 2, 1, 0.5, 0.5; clip 0.2
    # -min(16, 9.6), -min(7.5, 7.5), -min(3.25, 5.2), -min(-4.5, -7.2)
    batch, _ = PLAIN.credit(by_hand(), PLAIN.initial_state())
    shift = torch.tensor([[50.0, 2.0, 1.0, 0.5], [50.0, 0.5, 50.0, 50.0]], dtype=torch.float64).log()
    entropy = torch.full_like(shift, 3.0)
    term = PLAIN.loss(Role.ACTOR, Outputs(logprobs=batch.logprobs + shift, entropy=entropy), batch)
    assert term.unit == "token"
    assert term.loss.flatten().tolist() == pytest.approx([0.0, -9.6, -7.5, -3.25, 0.0, 7.2, 0.0, 0.0])
    metrics = {name: value.flatten().tolist() for name, value in term.metrics.items()}
    assert metrics["ratio"] == pytest.approx([0.0, 2.0, 1.0, 0.5, 0.0, 0.5, 0.0, 0.0])
    assert metrics["clip_fraction"] == [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert metrics["entropy"] == [0.0, 3.0, 3.0, 3.0, 0.0, 3.0, 0.0, 0.0]
    # ratio - 1 - log ratio
    low = 0.5 - 1 - math.log(0.5)
    assert metrics["approx_kl"] == pytest.approx([0.0, 2 - 1 - math.log(2), 0.0, low, 0.0, low, 0.0, 0.0])
    # entropy bonus 0.1 * 3 on every trained token
    bonus = dataclasses.replace(PLAIN, entropy_coef=0.1)
    with_bonus = bonus.loss(Role.ACTOR, Outputs(logprobs=batch.logprobs + shift, entropy=entropy), batch)
    assert (with_bonus.loss - term.loss).flatten().tolist() == pytest.approx(
        [0.0, -0.3, -0.3, -0.3, 0.0, -0.3, 0.0, 0.0]
    )


def test_the_critic_loss_by_hand() -> None:
    # returns 9, 9.5, 9.5, -5; old values 1, 2, 3, 4; value_clip 0.2, value_coef 0.1
    # new 1 -> ½ 8²; new 5 -> max(4.5², (2.2 - 9.5)²) / 2; new 2.9 -> ½ 6.6²; new 4 -> ½ 9²
    batch, _ = PLAIN.credit(by_hand(), PLAIN.initial_state())
    values = torch.tensor([[9.0, 1.0, 5.0, 2.9], [9.0, 4.0, 9.0, 9.0]], dtype=torch.float64)
    term = PLAIN.loss(Role.CRITIC, Outputs(values=values), batch)
    expected = [0.0, 32.0, 7.3**2 / 2, 6.6**2 / 2, 0.0, 40.5, 0.0, 0.0]
    assert term.unit == "token"
    assert term.loss.flatten().tolist() == pytest.approx([0.1 * x for x in expected])
    assert term.metrics["value_loss"].flatten().tolist() == pytest.approx(expected)
    assert term.metrics["value_clip_fraction"].flatten().tolist() == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_actor_and_critic_have_clips_of_their_own() -> None:
    # ratio 2 on advantage 8 counts as 1.3; a value that moved from 2 to 5 counts as 3: ½ (3 - 9.5)² above ½ (5 - 9.5)²
    algorithm = dataclasses.replace(PLAIN, clip=0.3, value_clip=1.0, value_coef=1.0)
    batch, _ = algorithm.credit(by_hand(), PLAIN.initial_state())
    actor = algorithm.loss(Role.ACTOR, Outputs(logprobs=batch.logprobs + math.log(2)), batch)
    assert actor.loss[0, 1].item() == pytest.approx(-1.3 * 8)
    critic = algorithm.loss(Role.CRITIC, Outputs(values=torch.full_like(batch.logprobs, 5.0)), batch)
    assert critic.loss[0, 2].item() == pytest.approx(6.5**2 / 2)


def test_before_any_update_ratio_is_one_and_the_gradient_is_the_policy_gradient() -> None:
    batch, _ = PPO().credit(random_rollout(0, 3, 5), PPO().initial_state())
    logprobs = batch.logprobs.clone().requires_grad_()
    term = PPO().loss(Role.ACTOR, Outputs(logprobs=logprobs), batch)
    assert torch.equal(term.metrics["ratio"], batch.loss_mask.double())
    assert not term.metrics["clip_fraction"].any()
    assert not term.metrics["approx_kl"].any()
    (grad,) = torch.autograd.grad(term.loss.sum(), logprobs)
    assert batch.advantages is not None
    torch.testing.assert_close(grad, -batch.advantages)


@given(seed=st.integers(0, 9999), rows=st.integers(2, 4), width=st.integers(2, 6), padding=st.integers(1, 4))
@settings(deadline=None, max_examples=20)
def test_padding_and_nan_outside_the_mask_change_nothing(seed: int, rows: int, width: int, padding: int) -> None:
    algorithm = PPO(whiten_rewards=True, normalize_rewards=True, entropy_coef=0.1, kl_estimator="k3")
    batch = random_rollout(seed, rows, width)
    mask = batch.loss_mask

    def widened(x: Tensor) -> Tensor:
        tail = x.new_full((rows, padding), torch.nan)
        return torch.cat([torch.where(mask, x, torch.nan), tail], dim=1)

    assert batch.ref_logprobs is not None
    assert batch.values is not None
    assert batch.rewards is not None
    wide = rollout(
        torch.cat([mask, mask.new_zeros(rows, padding)], dim=1),
        logprobs=widened(batch.logprobs),
        ref_logprobs=widened(batch.ref_logprobs),
        values=widened(batch.values),
        rewards=batch.rewards,
    )
    narrow, state = algorithm.credit(batch, algorithm.initial_state())
    broad, wide_state = algorithm.credit(wide, algorithm.initial_state())
    assert wide_state.kl_coef == pytest.approx(state.kl_coef)
    for name in ("advantages", "returns"):
        torch.testing.assert_close(getattr(broad, name)[:, :width], getattr(narrow, name), atol=1e-9, rtol=1e-9)
        assert not getattr(broad, name)[:, width:].any()
    assert algorithm.statistics(broad, state) == pytest.approx(algorithm.statistics(narrow, state))
    out = new_outputs(batch, seed)
    for role, name in ((Role.ACTOR, "logprobs"), (Role.CRITIC, "values")):
        spoilt = {field.name: getattr(out, field.name) for field in dataclasses.fields(out)}
        spoilt = {key: widened(value) for key, value in spoilt.items() if value is not None}
        moving, wide_moving = getattr(out, name).requires_grad_(), spoilt[name].requires_grad_()
        term = algorithm.loss(role, out, narrow)
        wide_term = algorithm.loss(role, Outputs(**spoilt), broad)
        torch.testing.assert_close(wide_term.loss[:, :width], term.loss, atol=1e-9, rtol=1e-9)
        assert not wide_term.loss[:, width:].any()
        for key, value in wide_term.metrics.items():
            torch.testing.assert_close(value[:, :width], term.metrics[key], atol=1e-9, rtol=1e-9)
            assert value.shape == wide_term.loss.shape
            assert not value.requires_grad
            assert not value[:, width:].any()
        (grad,) = torch.autograd.grad(term.loss.sum(), moving)
        (wide_grad,) = torch.autograd.grad(wide_term.loss.sum(), wide_moving)
        torch.testing.assert_close(wide_grad[:, :width], grad, atol=1e-9, rtol=1e-9)
        assert not wide_grad[:, width:].any()
        assert not wide_grad[:, :width][~mask].any()


@given(seed=st.integers(0, 9999), rows=st.integers(2, 5), width=st.integers(2, 5))
@settings(deadline=None, max_examples=20)
def test_permuting_sequences_permutes_credit_and_losses(seed: int, rows: int, width: int) -> None:
    algorithm = PPO(whiten_rewards=True, normalize_rewards=True)
    batch = random_rollout(seed, rows, width)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    credited, state = algorithm.credit(batch, algorithm.initial_state())
    shuffled, shuffled_state = algorithm.credit(batch.rows(order), algorithm.initial_state())
    torch.testing.assert_close(shuffled.advantages, credited.rows(order).advantages)
    assert shuffled_state.kl_coef == pytest.approx(state.kl_coef)
    assert shuffled_state.reward_m2 == pytest.approx(state.reward_m2)
    out = new_outputs(batch, seed)
    assert out.logprobs is not None
    term = algorithm.loss(Role.ACTOR, out, credited)
    part = algorithm.loss(Role.ACTOR, Outputs(logprobs=out.logprobs[order]), credited.rows(order))
    torch.testing.assert_close(part.loss, term.loss[order])


def test_gradcheck() -> None:
    algorithm = PPO(entropy_coef=0.3)
    batch, _ = algorithm.credit(random_rollout(2, 3, 4), algorithm.initial_state())
    out = new_outputs(batch, 2)
    assert out.logprobs is not None
    assert out.entropy is not None
    assert out.values is not None
    inputs = (out.logprobs.clone().requires_grad_(), out.entropy.clone().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda logprobs, entropy: algorithm.loss(Role.ACTOR, Outputs(logprobs=logprobs, entropy=entropy), batch).loss,
        inputs,
    )
    values = (out.values.clone().requires_grad_(),)
    assert torch.autograd.gradcheck(lambda v: algorithm.loss(Role.CRITIC, Outputs(values=v), batch).loss, values)


def test_a_completion_without_trained_tokens_earns_nothing() -> None:
    batch = rollout(torch.tensor([[False, False], [False, True]]), rewards=torch.tensor([100.0, 1.0]).double())
    credited, _ = PLAIN.credit(batch, PLAIN.initial_state())
    assert credited.returns is not None
    assert credited.returns.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_missing_columns_are_named() -> None:
    batch = by_hand().with_columns(ref_logprobs=None)
    with pytest.raises(ValueError, match=r"RolloutBatch\.ref_logprobs"):
        PLAIN.credit(batch, PLAIN.initial_state())
    credited, _ = PLAIN.credit(by_hand(), PLAIN.initial_state())
    with pytest.raises(ValueError, match=r"Outputs\.values"):
        PLAIN.loss(Role.CRITIC, Outputs(), credited)
    with pytest.raises(ValueError, match=r"Outputs\.entropy"):
        dataclasses.replace(PLAIN, entropy_coef=0.1).loss(Role.ACTOR, Outputs(logprobs=batch.logprobs), credited)
