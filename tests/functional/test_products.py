"""Products by oneDNN against torch's own, and when they are asked for at all."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from posttrain.functional import products

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch was built without oneDNN"
)


@pytest.fixture
def asked(monkeypatch):
    """Shapes of the products that oneDNN was asked for, on whatever processor."""
    calls, real = [], products._linear

    def spy(x, weight, bias):
        calls.append((tuple(x.shape), tuple(weight.shape)))
        return real(x, weight, bias)

    monkeypatch.setattr(products, "has_onednn", lambda: True)
    monkeypatch.setattr(products, "_linear", spy)
    return calls


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_onednn
@pytest.mark.parametrize("shape", [(130,), (1, 130), (2, 65), (13, 2, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trains", ["x", "weight", "both"])
@pytest.mark.parametrize("is_transposed", [True, False])
def test_linear_and_its_gradients_are_torchs(asked, shape, bias, trains, is_transposed) -> None:
    """In float64 rounding is no excuse, so the reference is computed there."""
    x, b = numbers(*shape, 96, seed=0), numbers(112, seed=2) if bias else None
    weight = numbers(96, 112, seed=1).T if is_transposed else numbers(112, 96, seed=1)
    towards = numbers(*shape, 112, seed=3)
    x.requires_grad_(trains != "weight")
    weight.requires_grad_(trains != "x")
    if b is not None:
        b.requires_grad_(trains != "x")
    wanted = [tensor for tensor in (x, weight, b) if tensor is not None and tensor.requires_grad]
    found = products.linear(x, weight, b)
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    grads = torch.autograd.grad(found, wanted, towards)
    expected = torch.autograd.grad(exact, wanted, towards.double())
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-5)
    for grad, right in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, right.float(), atol=2e-4, rtol=1e-5)
    assert asked, "the test is about oneDNN"


@needs_onednn
def test_products_without_gradients(asked) -> None:
    a, b = numbers(33, 64, seed=0), numbers(64, 5000, seed=1)
    exact = (a.double() @ b.double()).float()
    out = torch.full((33, 5000), torch.nan)
    products.product_into(out, a, b)
    torch.testing.assert_close(out, exact, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(products.product(a, b), exact, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(products.product(numbers(64, 33, seed=0).T, b).isfinite().all(), torch.tensor(True))
    assert max(weight[0] for _, weight in asked[:3]) == 2048, "blocks that stay in the cache"


def test_what_is_not_worth_it_or_not_its_own_is_left_to_torch(asked) -> None:
    small, wide = numbers(4, 8, seed=0), numbers(8, 16, seed=1)
    torch.testing.assert_close(products.product(small, wide), small @ wide)
    large, half = numbers(128, 128, seed=0), numbers(128, 128, seed=1).bfloat16()
    products.linear(large.bfloat16(), half)
    products.linear(large.double(), large.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(large, large).dtype == torch.bfloat16
    assert not asked


@needs_onednn
def test_they_are_counted_like_torchs(asked) -> None:
    x, weight = numbers(2, 80, 96, seed=0).requires_grad_(), numbers(112, 96, seed=1).requires_grad_()
    counts = []
    for function in (products.linear, F.linear):
        with FlopCounterMode(display=False) as counter:
            function(x, weight).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 160 * 96 * 112
    assert len(asked) == 3


def test_adding_a_product_holds_no_second_result(asked) -> None:
    a, b, out = numbers(5000, 33, seed=0), numbers(33, 64, seed=1), numbers(5000, 64, seed=2)
    exact = (out.double() + 0.5 * a.double() @ b.double()).float()

    class Made(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            self.largest = max(self.largest, found.numel())
            return found

    with Made() as made:
        products.add_product(out, a, b, alpha=0.5)
    torch.testing.assert_close(out, exact, atol=1e-4, rtol=1e-5)
    assert made.largest < out.numel() / 2


@needs_onednn
def test_a_weight_by_columns_holds_the_same_numbers(asked) -> None:
    weight, x = numbers(112, 96, seed=1), numbers(130, 96, seed=0)
    laid = products.by_columns(weight)
    assert torch.equal(laid, weight)
    assert laid.stride() == (1, 112)
    torch.testing.assert_close(products.linear(x, laid), x @ weight.T, atol=1e-4, rtol=1e-5)
    assert products.by_columns(weight.bfloat16()).stride() == (96, 1)
