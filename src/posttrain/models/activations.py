"""Activations by one fused operation instead of the eight that transformers spells them out with; norms likewise."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

from posttrain.models.gated import fuse_gates
from posttrain.models.norms import fuse_norms

Model = TypeVar("Model", bound=nn.Module)

_SPELLED_OUT = (NewGELUActivation, FastGELUActivation)


def fuse_activations(model: Model) -> Model:
    """Compute the tanh form of GELU in one pass, in place of ``gelu_new`` and ``gelu_fast``; SwiGLU and norms too.

        ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))

    The same function up to rounding. Spelled out it keeps four tensors of the layer's widest size for its backward
    pass, fused one: of GPT-2's activations that is 40 %.

    Args:
        model: is changed; modules without weights of their own are exchanged.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _SPELLED_OUT):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return fuse_norms(fuse_gates(model))
