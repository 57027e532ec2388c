"""Matrix products in float32 by oneDNN on CPUs with AVX-512.

torch asks MKL for them, which takes narrower instructions on processors of other makers: there oneDNN, which comes with
torch, is about twice as fast, and no slower on the rest. It is called where it can be and where the product is large
enough to be worth the call; everything else is torch's own product. The choice depends on the processor and the shapes
alone, so that a run gives the same bits whenever it is repeated.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

MIN_WORK = 1 << 20
"""Multiply-adds below which oneDNN's longer way to the product costs more than it saves."""
MIN_WORK_FORWARD = 1 << 17
"""The same for a linear layer without gradients, as in decoding, which has no function of ours to pass through."""

_BLOCK = 2048  # columns made at a time where the result has a place already: they are copied while still in the cache


@cache
def has_onednn() -> bool:
    """Whether float32 products are oneDNN's here: torch was built with it, and the CPU has AVX-512."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b with gradients, as ``torch.nn.functional.linear``.

    Args:
        x: [..., K]. weight: [N, K]. bias: [N] or None.

    Returns:
        [..., N].
    """
    trains = _trains(x, weight, bias)
    if not _is_quick(x, weight, x.numel() * weight.shape[0], MIN_WORK if trains else MIN_WORK_FORWARD):
        return F.linear(x, weight, bias)
    if trains:
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return _linear(x, weight, bias)


def keeps_afterwards(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether ``linear`` hands autograd what backward needs once the product is made, and not before it.

    torch's own product is not made again where it is the last of a checkpointed layer, as all that is needed has been
    handed over by then; ours is.
    """
    return _trains(x, weight, bias) and _is_quick(x, weight, x.numel() * weight.shape[0])


def product(a: Tensor, b: Tensor) -> Tensor:
    """[M, N] = [M, K] [K, N], without gradients."""
    return _linear(a, b.T, None) if _is_quick(a, b, a.numel() * b.shape[1]) else a @ b


def product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Write [M, K] [K, N] into ``out`` [M, N], without gradients."""
    if not _is_quick(a, b, a.numel() * b.shape[1]):
        torch.mm(a, b, out=out)
        return
    for start in range(0, b.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        out[:, columns] = _linear(a, b[:, columns].T, None)


def add_product(out: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0) -> None:
    """Add alpha [M, K] [K, N] to ``out`` [M, N], a few rows at a time: no second [M, N] is held. Without gradients."""
    for start in range(0, len(a), _BLOCK):
        rows = slice(start, start + _BLOCK)
        out[rows].add_(product(a[rows], b), alpha=alpha)


def by_columns(weight: Tensor) -> Tensor:
    """A weight [N, K] for products with few rows: the same numbers, columns contiguous where oneDNN reads them.

    16 rows then take two thirds of the time.
    """
    if not _is_quick(weight, weight, MIN_WORK):
        return weight
    return weight.T.contiguous().T


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_weight = ctx.needs_input_grad[1]
        ctx.save_for_backward(x if wants_weight else None, weight)
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_x = product(rows, weight).view(*grad.shape[:-1], -1) if wants_x else None
        grad_weight = product(rows.T, x.flatten(0, -2)) if wants_weight else None
        return grad_x, grad_weight, rows.sum(0) if wants_bias else None


def _trains(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    wants = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    return wants and torch.is_grad_enabled()


def _is_quick(a: Tensor, b: Tensor, work: int, least: int = MIN_WORK) -> bool:
    return (
        work >= least
        and a.dtype == torch.float32 == b.dtype
        and a.device.type == "cpu" == b.device.type
        and has_onednn()
        and not torch.is_autocast_enabled("cpu")
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    """2 M K N, for ``torch.utils.flop_counter``, which knows torch's own products only."""
    return 2 * prod(x) * weight[0]


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)
