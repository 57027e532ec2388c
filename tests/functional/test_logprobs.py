from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from posttrain.functional import most_probable, token_logprobs

N, D, V = 7, 4, 9
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"temperature": 0.7}, id="temperature"),
    pytest.param({"logit_scale": 0.3}, id="scale"),
    pytest.param({"softcap": 1.5}, id="softcap"),
    pytest.param({"temperature": 1.4, "logit_scale": 2.0, "softcap": 2.5}, id="all"),
]


def case(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, dtype=dtype, generator=generator)
    weight = torch.randn(V, D, dtype=dtype, generator=generator)
    bias = torch.randn(V, dtype=dtype, generator=generator)
    targets = torch.randint(V, (N,), generator=generator)
    return hidden, weight, bias, targets


def reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The same from the matrix of all logits, by torch's own distribution."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    return distribution.log_prob(targets), distribution.entropy()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def products(function: Callable[[], Any], *, vocabulary: int = 64, width: int = 16, rows: int = 40) -> float:
    """How many products of [rows, width] with [width, vocabulary] the function costs."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / (2 * rows * width * vocabulary)


def test_by_hand() -> None:
    # logits (0, log 3): p = (1/4, 3/4); H = 1/4 log 4 + 3/4 log(4/3)
    weight = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    hidden = torch.tensor([[3.0], [3.0]], dtype=torch.float64).log()
    logprobs, entropy = token_logprobs(hidden, weight, torch.tensor([0, 1]))
    quarters = torch.tensor([0.25, 0.75], dtype=torch.float64)
    torch.testing.assert_close(logprobs, quarters.log())
    torch.testing.assert_close(entropy, -(quarters * quarters.log()).sum().expand(2))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, N, 256])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_full_softmax(options: dict[str, Any], with_bias: bool, chunk_size: int) -> None:
    hidden, weight, bias, targets = case()
    options = {**options, "bias": bias if with_bias else None}
    actual = token_logprobs(hidden, weight, targets, chunk_size=chunk_size, **options)
    expected = reference(hidden, weight, targets, **options)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("chunk_size", [1, 3, N, 256])
@pytest.mark.parametrize("trainable", ["hidden", "weight", "bias", "all"])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options: dict[str, Any], trainable: str, chunk_size: int) -> None:
    hidden, weight, bias, targets = case()
    named = {"hidden": hidden, "weight": weight, "bias": bias}
    for name, tensor in named.items():
        tensor.requires_grad_(trainable in (name, "all"))

    def outputs(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(hidden, weight, targets, bias=bias, chunk_size=chunk_size, **options)

    # gradcheck takes one output at a time: log-probabilities alone use the kept direction, entropies the recomputation
    assert torch.autograd.gradcheck(outputs, (hidden, weight, bias))
    # and both at once
    assert torch.autograd.gradcheck(lambda *x: outputs(*x)[0] - 0.3 * outputs(*x)[1], (hidden, weight, bias))

    def mixed(function: Callable[..., tuple[Tensor, Tensor]], **extra: Any) -> tuple[Tensor, ...]:
        logprobs, entropy = function(hidden, weight, targets, bias=bias, **options, **extra)
        upstream = torch.linspace(-1, 2, N, dtype=torch.float64)
        moving = [x for x in named.values() if x.requires_grad]
        return torch.autograd.grad((upstream * logprobs + upstream.flip(0) * entropy).sum(), moving)

    torch.testing.assert_close(mixed(token_logprobs, chunk_size=chunk_size), mixed(reference))


@given(seed=st.integers(0, 9999), chunk_size=st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_rows_do_not_see_each_other(seed: int, chunk_size: int) -> None:
    hidden, weight, _, targets = case(seed)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    logprobs, entropy = token_logprobs(hidden, weight, targets, chunk_size=chunk_size)
    shuffled = token_logprobs(hidden[order], weight, targets[order], chunk_size=chunk_size)
    torch.testing.assert_close(shuffled, (logprobs[order], entropy[order]))
    spoilt = hidden.clone()
    spoilt[3] = torch.nan
    spoilt.requires_grad_()
    others = torch.arange(N) != 3
    spoilt_logprobs, _ = token_logprobs(spoilt, weight, targets, chunk_size=chunk_size)
    torch.testing.assert_close(spoilt_logprobs[others], logprobs[others])
    (grad,) = torch.autograd.grad(spoilt_logprobs[others].sum(), spoilt)
    assert grad[others].isfinite().all()


def test_bounds() -> None:
    hidden, weight, _, targets = case(1, torch.float32)
    logprobs, entropy = token_logprobs(hidden * 100, weight * 100, targets)
    assert logprobs.isfinite().all()
    assert (logprobs <= 0).all()
    assert (entropy >= 0).all()
    flat, largest = token_logprobs(hidden * 0, weight, targets)
    torch.testing.assert_close(flat, torch.full((N,), -torch.log(torch.tensor(float(V)))))
    torch.testing.assert_close(largest, -flat)


def test_many_rows_and_a_wide_vocabulary_cross_the_cache_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(21, 8, generator=generator), torch.randn(60_000, 8, generator=generator)
    targets = torch.randint(60_000, (21,), generator=generator)
    hidden.requires_grad_()
    actual, expected = token_logprobs(hidden, weight, targets, chunk_size=10), reference(hidden, weight, targets)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)
    for index in (0, 1):
        (grad,) = torch.autograd.grad(actual[index].sum(), hidden, retain_graph=True)
        (expected_grad,) = torch.autograd.grad(expected[index].sum(), hidden, retain_graph=True)
        torch.testing.assert_close(grad, expected_grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "temperature": 0.5, "logit_scale": 2.0}])
def test_never_holds_all_logits(head_trains: bool, with_entropy: bool, options: dict[str, Any]) -> None:
    rows, width, vocabulary, chunk = 96, 8, 128, 16
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=head_trains)
    bias = torch.randn(vocabulary, requires_grad=head_trains)
    targets = torch.randint(vocabulary, (rows,))
    with Largest() as largest:
        logprobs, entropy = token_logprobs(hidden, weight, targets, bias=bias, chunk_size=chunk, **options)
        forward = largest.numel
        (logprobs + entropy if with_entropy else logprobs).sum().backward()
    assert forward == chunk * vocabulary
    assert largest.numel == chunk * vocabulary < rows * vocabulary


def test_the_memory_probe_sees_the_full_softmax() -> None:
    with Largest() as largest:
        reference(torch.randn(96, 8), torch.randn(128, 8), torch.zeros(96, dtype=torch.long))
    assert largest.numel == 96 * 128


def test_products_of_a_frozen_head() -> None:
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(64, 16)
    targets = torch.randint(64, (40,))
    kept: list[tuple[Tensor, Tensor]] = []
    # logits and the direction; then nothing is left for backward but a row-wise product
    assert products(lambda: kept.append(token_logprobs(hidden, weight, targets, chunk_size=16))) == 2
    logprobs, entropy = kept[0]
    assert products(lambda: torch.autograd.grad(logprobs.sum(), hidden, retain_graph=True)) == 0
    # an entropy that takes part with weight 0 costs nothing either
    assert products(lambda: torch.autograd.grad((logprobs + 0 * entropy).sum(), hidden, retain_graph=True)) == 0
    # one that counts: logits again, and their gradient back to hidden
    assert products(lambda: torch.autograd.grad((logprobs + entropy).sum(), hidden)) == 2


@pytest.mark.parametrize("head_trains", [False, True])
def test_products_without_gradients(head_trains: bool) -> None:
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(64, 16, requires_grad=head_trains)
    targets = torch.randint(64, (40,))
    with torch.no_grad():
        assert products(lambda: token_logprobs(hidden, weight, targets)) == 1
    assert products(lambda: token_logprobs(hidden.detach(), weight, targets)) == 1


def test_products_of_a_trainable_head() -> None:
    hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(64, 16, requires_grad=True)
    targets = torch.randint(64, (40,))
    # logits; then logits again, to hidden, to weight
    assert products(lambda: token_logprobs(hidden, weight, targets)[0].sum().backward()) == 4


@pytest.mark.parametrize("head_trains", [False, True])
def test_half_precision_is_normalised_in_float32(head_trains: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(30, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(50, 16, generator=generator).bfloat16().requires_grad_(head_trains)
    targets = torch.randint(50, (30,), generator=generator)
    logprobs, entropy = token_logprobs(hidden, weight, targets, chunk_size=8)
    assert logprobs.dtype == entropy.dtype == torch.float32
    exact = hidden.detach().float().requires_grad_()
    expected, _ = reference(exact, weight.detach().float(), targets)
    torch.testing.assert_close(logprobs, expected, atol=0.05, rtol=0.02)
    (grad,) = torch.autograd.grad(logprobs.sum(), hidden)
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), expected_grad, atol=0.06, rtol=0.05)


def test_no_rows() -> None:
    hidden = torch.zeros(0, D, requires_grad=True)
    logprobs, entropy = token_logprobs(hidden, torch.randn(V, D), torch.zeros(0, dtype=torch.long))
    assert logprobs.shape == entropy.shape == (0,)
    (grad,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), hidden)
    assert grad.shape == (0, D)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_under_activation_checkpointing(reentrant: bool) -> None:
    hidden, weight, _, targets = case()
    hidden.requires_grad_()
    (expected,) = torch.autograd.grad(token_logprobs(hidden, weight, targets)[0].sum(), hidden)
    checkpoint(lambda h: token_logprobs(h, weight, targets)[0].sum(), hidden, use_reentrant=reentrant).backward()
    torch.testing.assert_close(hidden.grad, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "positive"),
        ({"softcap": -1.0}, "positive"),
        ({"chunk_size": 0}, "positive"),
        ({"targets": torch.zeros(N + 1, dtype=torch.long)}, "targets"),
        ({"weight": torch.zeros(V, D + 1)}, r"\[V, D\]"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    hidden, weight, _, targets = case(0, torch.float32)
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, **change}
    with pytest.raises(ValueError, match=message):
        token_logprobs(**arguments)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
@pytest.mark.parametrize("options", [{}, {"logit_scale": 0.3}, {"softcap": 1.5}, {"logit_scale": 2.0, "softcap": 2.5}])
def test_the_most_probable_tokens_are_those_of_all_logits(chunk_size: int, options: dict[str, float]) -> None:
    for seed in range(5):
        hidden, weight, bias, targets = case(seed)
        best = torch.nn.functional.linear(hidden, weight, bias).argmax(dim=1)
        targets = torch.where(torch.arange(N) % 2 == 0, best, targets)  # so that some are hit
        logprobs, hits = most_probable(hidden, weight, targets, bias=bias, chunk_size=chunk_size, **options)
        expected = token_logprobs(hidden, weight, targets, bias=bias, **options)[0]
        torch.testing.assert_close(logprobs, expected)
        assert hits.tolist() == (targets == best).tolist()


def test_of_equally_probable_tokens_each_is_a_hit_and_no_gradient_is_kept() -> None:
    hidden = torch.zeros(3, D, requires_grad=True)
    logprobs, hits = most_probable(hidden, torch.ones(V, D), torch.tensor([0, 4, V - 1]))
    assert hits.tolist() == [True, True, True]
    assert not logprobs.requires_grad
