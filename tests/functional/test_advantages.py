from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.functional import discounted_returns, gae, group_relative, leave_one_out


def random_case(seed: int, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, width, dtype=torch.float64, generator=generator)
    mask = torch.rand(rows, width, generator=generator) < 0.7
    return rewards, values, mask


def gae_by_definition(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Â_t = Σ_l (γλ)^l δ_{t+l}, as a double sum over a sequence without gaps."""
    following = [*values[1:], 0.0][: len(values)]
    deltas = [r + gamma * n - v for r, v, n in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def test_gae_by_hand() -> None:
    # gamma 0.5, lam 0.5, so gamma * lam = 0.25; values 2, 4, 8; rewards 0, 0, 1
    # delta_2 = 1 - 8 = -7;           A_2 = -7
    # delta_1 = 0 + 0.5 * 8 - 4 = 0;  A_1 = 0 + 0.25 * -7 = -1.75
    # delta_0 = 0 + 0.5 * 4 - 2 = 0;  A_0 = 0 + 0.25 * -1.75 = -0.4375
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[2.0, 4.0, 8.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[-0.4375, -1.75, -7.0]]
    assert returns.tolist() == [[1.5625, 2.25, 1.0]]


def test_gae_skips_a_gap_as_if_it_were_not_there() -> None:
    # the sequence of the test above with a tool's answer between its second and third token
    rewards = torch.tensor([[9.0, 0.0, 0.0, 5.0, 5.0, 1.0, 9.0]])
    values = torch.tensor([[9.0, 2.0, 4.0, 7.0, 7.0, 8.0, 9.0]])
    mask = torch.tensor([[False, True, True, False, False, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.0, -0.4375, -1.75, 0.0, 0.0, -7.0, 0.0]]
    assert returns.tolist() == [[0.0, 1.5625, 2.25, 0.0, 0.0, 1.0, 0.0]]


def test_gae_limits() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.25, 2.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    # lam 1, gamma 1: the return is the sum of rewards to come, whatever the values
    assert gae(rewards, values, mask, gamma=1.0, lam=1.0)[1].tolist() == [[6.0, 5.0, 3.0]]
    # lam 0: one-step difference, 1 + 0.25 - 0.5, 2 + 2 - 0.25, 3 - 2
    assert gae(rewards, values, mask, gamma=1.0, lam=0.0)[0].tolist() == [[0.75, 3.75, 1.0]]


def test_gae_of_an_empty_table() -> None:
    empty = torch.zeros(2, 0)
    advantages, returns = gae(empty, empty, empty.bool(), gamma=1.0, lam=1.0)
    assert advantages.shape == returns.shape == (2, 0)


@given(
    seed=st.integers(0, 9999),
    rows=st.integers(1, 4),
    width=st.integers(1, 7),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
)
@settings(deadline=None, max_examples=40)
def test_gae_equals_its_definition_on_the_kept_tokens(
    seed: int, rows: int, width: int, gamma: float, lam: float
) -> None:
    rewards, values, mask = random_case(seed, rows, width)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row in range(rows):
        kept = mask[row]
        expected = gae_by_definition(rewards[row, kept].tolist(), values[row, kept].tolist(), gamma, lam)
        assert advantages[row, kept].tolist() == pytest.approx(expected, abs=1e-9)
        assert not advantages[row, ~kept].any()
        assert not returns[row, ~kept].any()
        torch.testing.assert_close(returns[row, kept], advantages[row, kept] + values[row, kept])


@given(seed=st.integers(0, 9999), rows=st.integers(1, 4), width=st.integers(1, 6), padding=st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_gae_padding_nan_and_permutation(seed: int, rows: int, width: int, padding: int) -> None:
    rewards, values, mask = random_case(seed, rows, width)

    def widened(x: Tensor) -> Tensor:
        tail = x.new_full((rows, padding), torch.nan)
        return torch.cat([torch.where(mask, x, torch.nan), tail], dim=1).requires_grad_()

    wide = (widened(rewards), widened(values), torch.cat([mask, mask.new_zeros(rows, padding)], dim=1))
    rewards.requires_grad_()
    values.requires_grad_()
    narrow_out = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    wide_out = gae(*wide, gamma=0.9, lam=0.8)
    for narrow, broad in zip(narrow_out, wide_out, strict=True):
        assert torch.equal(broad[:, :width], narrow)
        assert not broad[:, width:].any()
    grads = torch.autograd.grad(sum(x.square().sum() for x in narrow_out), (rewards, values))
    wide_grads = torch.autograd.grad(sum(x.square().sum() for x in wide_out), wide[:2])
    for grad, wide_grad in zip(grads, wide_grads, strict=True):
        torch.testing.assert_close(wide_grad[:, :width], grad)
        assert not wide_grad[:, width:].any()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    shuffled = gae(rewards[order], values[order], mask[order], gamma=0.9, lam=0.8)
    assert torch.equal(shuffled[0], narrow_out[0][order])


def test_gae_gradcheck() -> None:
    rewards, values, mask = random_case(5, 3, 4)
    inputs = (rewards.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(lambda r, v: gae(r, v, mask, gamma=0.9, lam=0.8), inputs)


def test_discounted_returns_by_hand() -> None:
    # gamma 0.5: 4; 2 + 0.5 * 4 = 4; 1 + 0.5 * 4 = 3; a gap in the middle neither discounts nor counts
    rewards = torch.tensor([[9.0, 1.0, 2.0, 7.0, 4.0, 9.0]])
    mask = torch.tensor([[False, True, True, False, True, False]])
    assert discounted_returns(rewards, mask, gamma=0.5).tolist() == [[0.0, 3.0, 4.0, 0.0, 4.0, 0.0]]
    assert discounted_returns(rewards, mask, gamma=1.0).tolist() == [[0.0, 7.0, 6.0, 0.0, 4.0, 0.0]]
    assert discounted_returns(rewards, mask, gamma=0.0).tolist() == [[0.0, 1.0, 2.0, 0.0, 4.0, 0.0]]


@given(seed=st.integers(0, 9999), rows=st.integers(1, 4), width=st.integers(1, 6), gamma=st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_discounted_returns_by_definition_nan_and_permutation(seed: int, rows: int, width: int, gamma: float) -> None:
    rewards, _, mask = random_case(seed, rows, width)
    returns = discounted_returns(rewards, mask, gamma=gamma)
    for row in range(rows):
        kept = rewards[row, mask[row]].tolist()
        expected = [sum(gamma ** (k - t) * kept[k] for k in range(t, len(kept))) for t in range(len(kept))]
        assert returns[row, mask[row]].tolist() == pytest.approx(expected, abs=1e-9)
    assert not returns[~mask].any()
    hidden = torch.where(mask, rewards, torch.nan).requires_grad_()
    assert torch.equal(discounted_returns(hidden, mask, gamma=gamma), returns)
    (grad,) = torch.autograd.grad(discounted_returns(hidden, mask, gamma=gamma).sum(), hidden)
    assert not grad[~mask].any()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(discounted_returns(rewards[order], mask[order], gamma=gamma), returns[order])


def test_discounted_returns_gradcheck() -> None:
    rewards, _, mask = random_case(6, 3, 4)
    assert torch.autograd.gradcheck(lambda r: discounted_returns(r, mask, gamma=0.9), (rewards.requires_grad_(),))


def test_group_relative_by_hand() -> None:
    # group (1, 3): mean 2, unbiased std sqrt(2); group (5, 5): all 0
    rewards = torch.tensor([1.0, 3.0, 5.0, 5.0], dtype=torch.float64)
    assert group_relative(rewards, 2, scale_by_std=False).tolist() == [-1.0, 1.0, 0.0, 0.0]
    unit = 1 / (2**0.5 + 1e-4)
    assert group_relative(rewards, 2, scale_by_std=True).tolist() == pytest.approx([-unit, unit, 0.0, 0.0], abs=1e-12)


def test_leave_one_out_by_hand() -> None:
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    assert leave_one_out(torch.tensor([1.0, 2.0, 6.0]), 3).tolist() == [-3.0, -1.5, 4.5]


@given(seed=st.integers(0, 9999), prompts=st.integers(1, 4), group_size=st.integers(2, 5))
@settings(deadline=None, max_examples=25)
def test_groups_sum_to_zero_and_do_not_see_each_other(seed: int, prompts: int, group_size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(prompts * group_size, dtype=torch.float64, generator=generator)
    order = torch.randperm(prompts, generator=generator)
    rows = (order[:, None] * group_size + torch.arange(group_size)).flatten()
    for function in (
        lambda r: leave_one_out(r, group_size),
        lambda r: group_relative(r, group_size, scale_by_std=True),
        lambda r: group_relative(r, group_size, scale_by_std=False),
    ):
        out = function(rewards)
        assert out.view(prompts, group_size).sum(dim=1).abs().max().item() < 1e-9
        torch.testing.assert_close(function(rewards[rows]), out[rows])
    # r - mean of the others = G / (G - 1) (r - mean of all)
    scale = group_size / (group_size - 1)
    torch.testing.assert_close(
        leave_one_out(rewards, group_size), scale * group_relative(rewards, group_size, scale_by_std=False)
    )


@pytest.mark.parametrize("group_size", [0, 1, 4])
def test_groups_that_cannot_be_compared_are_refused(group_size: int) -> None:
    with pytest.raises(ValueError, match="group"):
        leave_one_out(torch.zeros(6), group_size)
    with pytest.raises(ValueError, match="group"):
        group_relative(torch.zeros(6), group_size, scale_by_std=True)
