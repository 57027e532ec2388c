from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.functional import masked_mean, masked_variance, whiten

X = torch.tensor([[1.0, 2.0, 6.0], [9.0, 3.0, 9.0]])
MASK = torch.tensor([[True, True, True], [False, True, False]])


def random_case(seed: int, rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, dtype=torch.float64, generator=generator)
    mask = torch.rand(rows, width, generator=generator) < 0.7
    mask[0, 0] = True
    return x, mask


def test_masked_mean_by_hand() -> None:
    # kept: 1, 2, 6, 3 -> 12 / 4
    assert masked_mean(X, MASK).item() == 3.0
    # rows: (1 + 2 + 6) / 3 and 3 / 1; columns: 1 / 1, (2 + 3) / 2, 6 / 1
    assert masked_mean(X, MASK, dim=1).tolist() == [3.0, 3.0]
    assert masked_mean(X, MASK, dim=0).tolist() == [1.0, 2.5, 6.0]


def test_masked_mean_of_nothing_is_zero() -> None:
    nothing = torch.zeros_like(MASK)
    assert masked_mean(X, nothing).item() == 0.0
    assert masked_mean(X, nothing, dim=1).tolist() == [0.0, 0.0]


def test_a_mask_may_be_broadcast_or_float() -> None:
    # columns 0 and 2 of both rows: (1 + 6 + 9 + 9) / 4
    assert masked_mean(X, torch.tensor([1.0, 0.0, 1.0])).item() == 6.25


def test_variance_by_hand() -> None:
    # deviations from 3: -2, -1, 3, 0 -> 14 / (4 - 1)
    assert masked_variance(X, MASK).item() == pytest.approx(14 / 3)
    assert masked_variance(X, torch.zeros_like(MASK)).item() == 0.0


def test_whiten_by_hand() -> None:
    # mean 3, unbiased variance 14 / 3
    unit = 1 / math.sqrt(14 / 3)
    expected = torch.tensor([[-2 * unit, -unit, 3 * unit], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(whiten(X, MASK), expected)
    shifted = torch.where(MASK, expected + 3, 0.0)
    torch.testing.assert_close(whiten(X, MASK, shift_mean=False), shifted)


def test_whiten_uses_eps_inside_the_root() -> None:
    # var 14 / 3, eps 1/3 -> deviation sqrt(5)
    assert whiten(X, MASK, eps=1 / 3)[0, 2].item() == pytest.approx(3 / math.sqrt(5))


def test_whiten_of_constants_and_of_a_lone_position_is_zero() -> None:
    assert whiten(torch.full((2, 3), 4.0), MASK).abs().max().item() == 0.0
    lone = torch.tensor([[True, False, False], [False, False, False]])
    assert whiten(X, lone).abs().max().item() == 0.0
    assert whiten(X, lone, shift_mean=False).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("shift_mean", [True, False])
@given(seed=st.integers(0, 9999), rows=st.integers(1, 4), width=st.integers(2, 6), padding=st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_padding_and_nan_outside_change_nothing(
    shift_mean: bool, seed: int, rows: int, width: int, padding: int
) -> None:
    x, mask = random_case(seed, rows, width)
    wide = torch.cat([torch.where(mask, x, torch.nan), x.new_full((rows, padding), torch.nan)], dim=1)
    wide_mask = torch.cat([mask, mask.new_zeros(rows, padding)], dim=1)
    x.requires_grad_()
    wide.requires_grad_()
    narrow_out = whiten(x, mask, shift_mean=shift_mean)
    wide_out = whiten(wide, wide_mask, shift_mean=shift_mean)
    torch.testing.assert_close(wide_out[:, :width], narrow_out, atol=1e-9, rtol=1e-9)
    assert not wide_out[:, width:].any()
    torch.testing.assert_close(masked_mean(wide, wide_mask), masked_mean(x, mask))
    direction = torch.arange(width, dtype=x.dtype)
    (grad,) = torch.autograd.grad((narrow_out * direction).sum() + masked_mean(x, mask), x)
    loss = (wide_out[:, :width] * direction).sum() + masked_mean(wide, wide_mask)
    (wide_grad,) = torch.autograd.grad(loss, wide)
    torch.testing.assert_close(wide_grad[:, :width], grad, atol=1e-7, rtol=1e-7)
    assert not wide_grad[:, width:].any()
    assert not wide_grad[:, :width][~mask].any()


@given(seed=st.integers(0, 9999), rows=st.integers(1, 5), width=st.integers(2, 6))
@settings(deadline=None, max_examples=25)
def test_whitened_moments_and_permutation(seed: int, rows: int, width: int) -> None:
    x, mask = random_case(seed, rows, width)
    mask[0, 1] = True
    out = whiten(x, mask)
    variance = masked_variance(x, mask).item()
    assert masked_mean(out, mask).item() == pytest.approx(0, abs=1e-9)
    assert masked_variance(out, mask).item() == pytest.approx(variance / (variance + 1e-8), abs=1e-9)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(whiten(x[order], mask[order]), out[order])


def test_gradcheck() -> None:
    x, mask = random_case(3, 3, 4)
    x.requires_grad_()
    for function in (
        lambda x: masked_mean(x, mask),
        lambda x: masked_mean(x, mask, dim=1),
        lambda x: masked_variance(x, mask),
        lambda x: whiten(x, mask),
        lambda x: whiten(x, mask, shift_mean=False),
    ):
        assert torch.autograd.gradcheck(function, (x,))
