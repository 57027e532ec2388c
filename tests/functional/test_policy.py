from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.functional import cispo_loss, clipped_surrogate, clipped_value_loss, sequence_ratio_logprobs


def test_surrogate_by_hand() -> None:
    # clip to [0.8, 1.3]; ratio, advantage -> -min(ratio * A, clipped * A)
    #  1.5,  2 -> min( 3.0,  2.6) =  2.6, clipped
    #  1.5, -2 -> min(-3.0, -2.6) = -3.0, not
    #  0.5,  2 -> min( 1.0,  1.6) =  1.0, not
    #  0.5, -2 -> min(-1.0, -1.6) = -1.6, clipped
    #  1.0,  2 -> 2.0, not
    #  1.5,  0 -> 0, not: both objectives are equal
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.0, 1.5]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0, 0.0]], dtype=torch.float64)
    old = torch.full_like(ratio, -1.0)
    loss, clipped = clipped_surrogate(old + ratio.log(), old, advantages, clip_low=0.2, clip_high=0.3)
    assert loss[0].tolist() == pytest.approx([-2.6, 3.0, -1.0, 1.6, -2.0, 0.0])
    assert clipped[0].tolist() == [True, False, False, True, False, False]


def test_surrogate_gradient_is_the_policy_gradient_inside_and_zero_where_clipped() -> None:
    # dL/dlogp = -ratio * A where not clipped, 0 where clipped
    ratio = torch.tensor([[1.5, 1.1, 0.5]], dtype=torch.float64)
    logprobs = ratio.log().requires_grad_()
    advantages = torch.full_like(ratio, 2.0)
    loss, _ = clipped_surrogate(logprobs, torch.zeros_like(ratio), advantages, clip_low=0.2, clip_high=0.2)
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    assert grad[0].tolist() == pytest.approx([0.0, -2.2, -1.0])


def test_surrogate_targets_carry_no_gradient() -> None:
    logprobs, old, advantages = (torch.zeros(1, 2, requires_grad=True) for _ in range(3))
    loss, _ = clipped_surrogate(logprobs, old, advantages + 1, clip_low=0.2, clip_high=0.2)
    grads = torch.autograd.grad(loss.sum(), (logprobs, old, advantages), allow_unused=True)
    assert grads[0] is not None
    assert grads[1] is None
    assert grads[2] is None


def test_dual_clip_by_hand() -> None:
    # clip to [0.8, 1.2], dual clip 3; ratio, advantage -> loss, bounded where it is negative by -3 A
    #  5.0, -2 -> plain 10, bound 6 -> 6, in force
    #  2.0, -2 -> plain 4, bound 6 -> 4, not
    #  0.5, -2 -> clipped 1.6, bound 6 -> 1.6, clipped as without a dual clip
    #  5.0,  2 -> clipped -2.4: a good token has no such bound
    #  5.0,  0 -> 0
    ratio = torch.tensor([[5.0, 2.0, 0.5, 5.0, 5.0]], dtype=torch.float64)
    logprobs = ratio.log().requires_grad_()
    advantages = torch.tensor([[-2.0, -2.0, -2.0, 2.0, 0.0]], dtype=torch.float64)
    loss, clipped = clipped_surrogate(
        logprobs, torch.zeros_like(ratio), advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0
    )
    assert loss[0].tolist() == pytest.approx([6.0, 4.0, 1.6, -2.4, 0.0])
    assert clipped[0].tolist() == [True, False, True, True, False]
    # -ratio * A where no bound is in force
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    assert grad[0].tolist() == pytest.approx([0.0, 4.0, 0.0, 0.0, 0.0])


def test_dual_clip_must_leave_room_for_the_ratio_it_starts_with() -> None:
    with pytest.raises(ValueError, match="dual_clip must be above 1"):
        clipped_surrogate(*torch.zeros(3, 1, 1), clip_low=0.2, clip_high=0.2, dual_clip=1.0)


def test_sequence_ratio_by_hand() -> None:
    # log-ratios 1, 2 | outside | 3: mean 2; second row: -1 alone
    logprobs = torch.tensor([[1.0, 2.0, 9.0, 3.0], [-1.0, 9.0, 9.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    ratio = sequence_ratio_logprobs(logprobs, torch.zeros(2, 4), mask)
    assert ratio.tolist() == [[2.0, 2.0, 0.0, 2.0], [-1.0, 0.0, 0.0, 0.0]]
    # each token moves its own place only
    (grad,) = torch.autograd.grad(ratio[0, 1], logprobs)
    assert grad.tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    # of whole sequences: 1 + 2 + 3 and -1, the gradient times 3 tokens and 1
    whole = sequence_ratio_logprobs(logprobs, torch.zeros(2, 4), mask, normalize=False)
    assert whole.tolist() == [[6.0, 6.0, 0.0, 6.0], [-1.0, 0.0, 0.0, 0.0]]
    (grad,) = torch.autograd.grad(whole[0, 1] + whole[1, 0], logprobs)
    assert grad.tolist() == [[0.0, 3.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


@given(seed=st.integers(0, 9999), reduction=st.sampled_from(["sequence", "batch", "action"]))
@settings(deadline=None, max_examples=40)
def test_sequence_ratio_has_value_and_gradient_of_a_loss_on_whole_sequences(seed: int, reduction: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs, old = 0.2 * torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    advantages = torch.randn(3, 1, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 5, generator=generator) < 0.7
    mask[:, 0] = True
    logprobs.requires_grad_()
    lengths = mask.sum(dim=1)
    clip = {"clip_low": 0.1, "clip_high": 0.15}

    levels = torch.where(mask, logprobs - old, 0.0).sum(dim=1) / (1 if reduction == "action" else lengths)  # [B]
    whole, _ = clipped_surrogate(levels[:, None], torch.zeros(3, 1), advantages, **clip)
    ratios = sequence_ratio_logprobs(logprobs, old, mask, normalize=reduction != "action")
    tokens, _ = clipped_surrogate(ratios, torch.zeros_like(old), advantages.expand(3, 5), **clip)
    if reduction in ("sequence", "action"):
        losses = (whole.sum(), (torch.where(mask, tokens, 0.0).sum(dim=1) / lengths).sum())
    else:
        losses = ((whole[:, 0] * lengths).sum(), tokens[mask].sum())
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logprobs)[0] for loss in losses))


@given(seed=st.integers(0, 9999), padding=st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_sequence_ratio_padding_nan_and_permutation(seed: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs, old = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 4, generator=generator) < 0.6
    mask[0] = False  # a sequence without a token

    def widened(x: torch.Tensor) -> torch.Tensor:
        tail = x.new_full((3, padding), torch.nan)
        return torch.cat([torch.where(mask, x, torch.nan), tail], dim=1).requires_grad_()

    narrow = sequence_ratio_logprobs(logprobs, old, mask)
    wide = (widened(logprobs), widened(old), torch.cat([mask, mask.new_zeros(3, padding)], dim=1))
    broad = sequence_ratio_logprobs(*wide)
    torch.testing.assert_close(broad[:, :4], narrow)
    assert not broad[:, 4:].any()
    assert not narrow[~mask].any()
    # the value is the level of the whole sequence, the gradient that of the token: 2 * level on kept tokens
    (grad,) = torch.autograd.grad(broad.square().sum(), wide[0])
    torch.testing.assert_close(grad, 2 * broad.detach())
    order = torch.randperm(3, generator=generator)
    torch.testing.assert_close(sequence_ratio_logprobs(logprobs[order], old[order], mask[order]), narrow[order])


def test_cispo_by_hand() -> None:
    # weights clipped to [0.5, 1.5]; -weight * A * logprob
    #  ratio 2.0, A  2, logp -1.0 -> 1.5 * 2 * 1 = 3, cut
    #  ratio 2.0, A -2, logp -1.0 -> -3, cut: whatever the sign
    #  ratio 0.1, A  1, logp -4.0 -> 0.5 * 1 * 4 = 2, cut
    #  ratio 1.2, A  1, logp -0.5 -> 1.2 * 0.5 = 0.6, not
    logprobs = torch.tensor([[-1.0, -1.0, -4.0, -0.5]], dtype=torch.float64, requires_grad=True)
    ratio = torch.tensor([[2.0, 2.0, 0.1, 1.2]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, -2.0, 1.0, 1.0]], dtype=torch.float64)
    old = logprobs.detach() - ratio.log()
    loss, cut = cispo_loss(logprobs, old, advantages, clip_low=0.5, clip_high=0.5)
    assert loss[0].tolist() == pytest.approx([3.0, -3.0, 2.0, 0.6])
    assert cut[0].tolist() == [True, True, True, False]
    # no token loses its gradient: -weight * A
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    assert grad[0].tolist() == pytest.approx([-3.0, 3.0, -0.5, -1.2])
    # no bound from below
    unbounded, cut = cispo_loss(logprobs, old, advantages, clip_low=1.0, clip_high=0.5)
    assert unbounded[0, 2].item() == pytest.approx(0.4)
    assert cut[0].tolist() == [True, True, False, False]


def test_cispo_targets_carry_no_gradient() -> None:
    logprobs, old, advantages = (torch.zeros(1, 2, requires_grad=True) for _ in range(3))
    loss, _ = cispo_loss(logprobs, old, advantages + 1, clip_low=0.2, clip_high=0.2)
    grads = torch.autograd.grad(loss.sum(), (logprobs, old, advantages), allow_unused=True)
    assert grads[0].tolist() == [[-1.0, -1.0]]
    assert grads[1:] == (None, None)


def test_value_loss_by_hand() -> None:
    # old 0, clip 0.5. value, return -> plain error², clipped error², half the larger
    #  0.3, 1 -> 0.49, 0.49 -> 0.245
    #  2.0, 1 -> 1.00, (0.5 - 1)² = 0.25 -> 0.5
    #  2.0, 3 -> 1.00, (0.5 - 3)² = 6.25 -> 3.125
    values = torch.tensor([[0.3, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([[1.0, 1.0, 3.0]], dtype=torch.float64)
    loss = clipped_value_loss(values, torch.zeros_like(returns), returns, clip=0.5)
    assert loss[0].tolist() == pytest.approx([0.245, 0.5, 3.125])
    # value - return, value - return, and 0 where the clipped error rules
    (grad,) = torch.autograd.grad(loss.sum(), values)
    assert grad[0].tolist() == pytest.approx([-0.7, 1.0, 0.0])


def test_value_loss_without_clip() -> None:
    values, returns = torch.tensor([[5.0]]), torch.tensor([[1.0]])
    assert clipped_value_loss(values, torch.zeros(1, 1), returns, clip=math.inf).item() == 8.0


@given(seed=st.integers(0, 9999), low=st.floats(0.01, 0.9), high=st.floats(0.01, 2.0))
@settings(deadline=None, max_examples=40)
def test_pessimism(seed: int, low: float, high: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs, old, advantages = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    loss, clipped = clipped_surrogate(logprobs, old, advantages, clip_low=low, clip_high=high)
    ratio = torch.exp(logprobs - old)
    assert (loss >= -ratio * advantages - 1e-12).all()
    outside = torch.where(advantages > 0, ratio > 1 + high, ratio < 1 - low)
    assert torch.equal(clipped, outside)
    value_loss = clipped_value_loss(logprobs, old, advantages, clip=high)
    assert (value_loss >= 0.5 * (logprobs - advantages).square() - 1e-12).all()
    order = torch.randperm(4, generator=generator)
    shuffled, _ = clipped_surrogate(logprobs[order], old[order], advantages[order], clip_low=low, clip_high=high)
    assert torch.equal(shuffled, loss[order])
    dual, dually = clipped_surrogate(logprobs, old, advantages, clip_low=low, clip_high=high, dual_clip=1.5)
    assert torch.equal(dual, torch.where(advantages < 0, torch.minimum(loss, -1.5 * advantages), loss))
    assert torch.equal(dually, clipped | (dual < loss))


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(1)
    moving, old, target = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    moving.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, old, target, clip_low=0.2, clip_high=0.3)[0], (moving,)
    )
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, old, target, clip_low=0.2, clip_high=0.3, dual_clip=1.5)[0], (moving,)
    )
    assert torch.autograd.gradcheck(lambda x: clipped_value_loss(x, old, target, clip=0.5), (moving,))


def test_gradcheck_of_cispo() -> None:
    # Finite differences see a weight move that carries no gradient, unless it stands at its bound.
    generator = torch.Generator().manual_seed(2)
    moving, old, target = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    moving.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cispo_loss(x, old - 9, target, clip_low=0.2, clip_high=0.3)[0], (moving,))
    loss, _ = cispo_loss(moving, old, target, clip_low=0.2, clip_high=0.3)
    (grad,) = torch.autograd.grad(loss.sum(), moving)
    torch.testing.assert_close(grad, -torch.exp(moving - old).clamp(0.8, 1.3).detach() * target)


def test_gradcheck_of_sequence_ratios() -> None:
    # Likewise the level: one token a sequence leaves only it, and its gradient is the token's own.
    moving = torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    mask = torch.ones(4, 1, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda x: sequence_ratio_logprobs(x, torch.zeros(4, 1), mask), (moving,))
