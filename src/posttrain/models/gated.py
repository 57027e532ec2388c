"""SwiGLU in one operation that keeps its two inputs alone for the backward pass, where possible with what follows."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.activations import SiLUActivation

Model = TypeVar("Model", bound=nn.Module)

_FORWARD = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
_SILU = (nn.SiLU, SiLUActivation)


def fuse_gates(model: Model) -> Model:
    """Let the gated layers of Llama, Qwen, Mistral and their kin compute SwiGLU in one operation; changes the model.

        silu(g) ⊙ u = g σ(g) ⊙ u

    The same function up to rounding. Spelled out, silu(g) is kept for the backward pass beside g and u, and so is the
    result where the next layer trains: two of the four widest tensors of a layer. A next layer that ``takes_gate``
    makes the result again.

    Args:
        model: whose layers are taken where their forward is this function, by its very text, and their activation SiLU.

    Returns:
        The model.
    """
    for module in model.modules():
        kind: Any = type(module)
        if isinstance(getattr(module, "act_fn", None), _SILU) and _is_gated(kind):
            module.__class__ = _fused(kind)
    return model


class _Fused:
    """What replaces the forward of a gated layer."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        out: Tensor
        if getattr(self.down_proj, "takes_gate", False):
            out = self.down_proj(gate, up=up)
        else:
            out = self.down_proj(swiglu(gate, up))
        return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) ⊙ up, both of one shape, with gradients."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


def gate_gradients(grad: Tensor, gate: Tensor, up: Tensor, activated: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up; ``activated`` is silu(gate), and is overwritten."""
    grad_up = activated.mul_(grad)
    grad_gate = grad * up
    torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
    return grad_gate, grad_up


@cache
def _is_gated(kind: Any) -> bool:
    try:
        return not issubclass(kind, _Fused) and _FORWARD in inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False


@cache
def _fused(kind: Any) -> Any:
    return type(kind.__name__, (_Fused, kind), {"__module__": kind.__module__})


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return gate_gradients(grad, gate, up, F.silu(gate))
