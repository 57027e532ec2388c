"""RMS norms in place: the same bits with one tensor less on the way, and only where it is that norm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from posttrain.models.norms import fuse_norms


def two_norms(kind, dtype=torch.float32, *, trains=False):
    """A norm with a random weight and the same one fused."""
    torch.manual_seed(0)
    plain = kind(24)
    nn.init.normal_(plain.weight)
    plain.to(dtype).requires_grad_(trains)
    return plain, fuse_norms(nn.ModuleList([copy.deepcopy(plain)]))[0]


def answers(module, x):
    """Output and gradients of a norm with a residual beside it, as in a layer."""
    own = x.clone().requires_grad_(True)
    out = own + torch.tanh(module(own))
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    return out.detach(), own.grad, module.weight.grad


@pytest.mark.parametrize("kind", [LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_norm_is_the_same_to_the_bit(kind, trains, dtype):
    plain, fused = two_norms(kind, dtype, trains=trains)
    assert type(fused) is not kind
    assert isinstance(fused, kind)
    x = torch.randn(2, 7, 24).to(dtype)
    before = x.clone()
    for one, other in zip(answers(plain, x), answers(fused, x), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(plain(x), fused(x))
    assert torch.equal(x, before)


class _Made(TorchDispatchMode):
    """Keeps every tensor as large as a state that operations make."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.held = numel, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() == self.numel:
            self.held.append(out)
        return out

    @property
    def num_storages(self):
        return len({tensor.untyped_storage().data_ptr() for tensor in self.held})


def test_one_tensor_less_is_made():
    plain, fused = two_norms(LlamaRMSNorm)
    made = []
    for module in (plain, fused):
        with _Made(5 * 24) as seen:
            module(torch.randn(5, 24, requires_grad=True) * 2)
        made.append(seen.num_storages)
    assert made[0] - made[1] == 1


class ShiftedRMSNorm(LlamaRMSNorm):
    """Llama's but for its form, which is Gemma's."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) * (1 + 1 / self.weight)


def test_other_norms_stay():
    shifted = ShiftedRMSNorm(24)
    assert type(fuse_norms(nn.ModuleList([shifted]))[0]) is ShiftedRMSNorm
    model = fuse_norms(nn.ModuleList([GemmaRMSNorm(24), nn.LayerNorm(24), nn.RMSNorm(24)]))
    assert [type(module) for module in model] == [GemmaRMSNorm, nn.LayerNorm, nn.RMSNorm]


def test_once_is_enough():
    model = nn.ModuleList([LlamaRMSNorm(24)])
    kind = type(fuse_norms(model)[0])
    assert type(fuse_norms(model)[0]) is kind
    assert type(copy.deepcopy(model)[0]) is kind
