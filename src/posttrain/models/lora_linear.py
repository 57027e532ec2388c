"""Plain LoRA on a frozen linear layer as one operation: peft's numbers with fewer passes over memory.

peft adds ``lora_B(lora_A(x)) * scaling`` to the layer's output: a product, a scaling and a sum, each a pass over
[N, out], and the same again in backward. Here the small matrix is scaled and the products add onto what is there. The
thin products are taken as [r, N], which CPU kernels do three to five times faster than [N, r].

The layer that ends a gated one takes its two inputs: with them it makes its own input again in backward.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from posttrain.functional import products
from posttrain.models.gated import gate_gradients, swiglu
from posttrain.models.linears import QuickConv1D, QuickLinear

_BASES = (nn.Linear, Conv1D, QuickLinear, QuickConv1D)


class FusedLoraLinear(LoraLinear):
    """A peft layer that computes plain LoRA by itself and leaves every other kind to peft.

    Its state, names and files are peft's: only ``forward`` differs.
    """

    takes_gate = True

    def forward(self, x: Tensor, *args: Any, up: Tensor | None = None, **kwargs: Any) -> Tensor:
        """What the layer says of ``x``, or of silu(x) ⊙ up where that is given.

        Args:
            x: [..., in]. up: [..., in] or None.

        Returns:
            [..., out].
        """
        base = self.base_layer
        worn = [name for name in self.active_adapters if name in self.lora_A]
        others = args or kwargs or self.disable_adapters or self.merged or type(base) not in _BASES
        if others or not worn or not all(self._is_plain(name, x) for name in worn):
            x = x if up is None else swiglu(x, up)
            return super().forward(x, *args, **kwargs) if others or worn else base(x)
        weight = base.weight.T if self.fan_in_fan_out else base.weight
        pairs = [matrix for name in worn for matrix in (self.lora_A[name].weight, self.lora_B[name].weight)]
        scales = tuple(float(self.scaling[name]) for name in worn)
        return _Sum.apply(x, up, weight, base.bias, scales, *pairs)  # type: ignore[no-untyped-call]

    def _is_plain(self, name: str, x: Tensor) -> bool:
        """Whether an adapter is a frozen weight plus scaling · B A, all in the dtype of ``x`` and without dropout."""
        base, down, up, dropout = self.base_layer, self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
        return (
            name not in self.lora_variant
            and up.bias is None
            and (not self.training or isinstance(dropout, nn.Identity) or dropout.p == 0)
            and not base.weight.requires_grad
            and not (base.bias is not None and base.bias.requires_grad)
            and x.dtype == base.weight.dtype == down.weight.dtype == up.weight.dtype
            and (x.is_meta or not torch.is_autocast_enabled(x.device.type))
        )


def fuse(model: nn.Module) -> None:
    """Let every plain peft layer of a model compute its adapters in one operation."""
    for module in model.modules():
        if type(module) is LoraLinear:
            module.__class__ = FusedLoraLinear


class _Sum(torch.autograd.Function):
    """y = x Wᵀ + b + Σ_i s_i (x A_iᵀ) B_iᵀ with W and b frozen; with ``up``, silu(x) ⊙ up stands for x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        scales: tuple[float, ...],
        *pairs: Tensor,
    ) -> Tensor:
        inputs = x if up is None else F.silu(x).mul_(up)
        rows = inputs.reshape(-1, x.shape[-1])
        out = products.linear(rows, weight, bias)
        narrow: list[Tensor | None] = []  # [r, N] of each adapter that trains, scaled
        for scale, down, wide, trains in zip(
            scales, pairs[0::2], pairs[1::2], ctx.needs_input_grad[_FIRST::2], strict=True
        ):
            inner = products.product(down, rows.T).mul_(scale)
            narrow.append(inner if trains else None)
            out.addmm_(inner.T, wide.T)
        ctx.scales = scales
        ctx.shape = x.shape
        kept = x if up is not None else rows if any(ctx.needs_input_grad[_FIRST:]) else None
        ctx.save_for_backward(kept, up, weight, *pairs, *narrow)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, up, weight, *rest = ctx.saved_tensors
        count = 2 * len(ctx.scales)
        pairs, narrow = rest[:count], rest[count:]
        wants_x = any(ctx.needs_input_grad[:2])
        activated = None if up is None else F.silu(kept)
        grad = grad.reshape(-1, grad.shape[-1])
        grad_x = products.product(grad, weight) if wants_x else None
        rows = None
        if any(ctx.needs_input_grad[_FIRST::2]):
            rows = kept if activated is None else (activated * up).reshape(-1, ctx.shape[-1])
        grads: list[Tensor | None] = []
        for number, (scale, down, wide) in enumerate(zip(ctx.scales, pairs[0::2], pairs[1::2], strict=True)):
            wants_down, wants_up = ctx.needs_input_grad[_FIRST + 2 * number : _FIRST + 2 + 2 * number]
            inner = products.product(wide.T, grad.T).mul_(scale) if wants_x or wants_down else None  # [r, N]
            if grad_x is not None and inner is not None:
                grad_x.addmm_(inner.T, down)
            grads.append(None if not wants_down or inner is None or rows is None else products.product(inner, rows))
            grads.append(products.product(narrow[number], grad).T if wants_up else None)
        grad_x, grad_up = None if grad_x is None else grad_x.view(ctx.shape), None
        if grad_x is not None and activated is not None:
            grad_x, grad_up = gate_gradients(grad_x, kept, up, activated)
        return grad_x, grad_up, None, None, None, *grads


_FIRST = 5
"""Place of the first adapter's matrices among the inputs of ``_Sum``."""
