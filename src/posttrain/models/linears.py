"""The linear layers of a model by the faster products of ``posttrain.functional.products``."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from posttrain.functional import products


class QuickLinear(nn.Linear):
    """``torch.nn.Linear``, whoever computes it."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return products.linear(input, self.weight, self.bias)


class QuickConv1D(Conv1D):  # type: ignore[misc, no-untyped-call]
    """GPT-2's linear layer, its weight [K, N]."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return products.linear(x, self.weight.T, self.bias)


def keeps_afterwards(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer's product is one that a checkpointed layer that ends with it makes again."""
    if isinstance(layer, QuickLinear):
        return products.keeps_afterwards(x, layer.weight, layer.bias)
    return isinstance(layer, QuickConv1D) and products.keeps_afterwards(x, layer.weight.T, layer.bias)


_QUICK: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuickLinear, Conv1D: QuickConv1D}


def quicken(model: nn.Module) -> None:
    """Let every plain linear layer, those inside adapters too, compute by ``products``; parameters and names stay."""
    for module in model.modules():
        if type(module) in _QUICK:
            module.__class__ = _QUICK[type(module)]
