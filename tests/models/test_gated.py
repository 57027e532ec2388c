"""SwiGLU fused: the same layer with one wide tensor less kept, and only where it is that layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3Config, Phi3MLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3Config, Qwen3MLP

from posttrain.models.gated import fuse_gates


def layer(kind, config, **options):
    torch.manual_seed(0)
    return kind(
        config(hidden_size=16, intermediate_size=40, num_attention_heads=2, num_key_value_heads=2, **options)
    ).double()


@pytest.mark.parametrize(
    ("kind", "config"), [(LlamaMLP, LlamaConfig), (Qwen2MLP, Qwen2Config), (Qwen3MLP, Qwen3Config)]
)
def test_the_layer_is_the_same_function(kind, config):
    plain = layer(kind, config)
    fused = fuse_gates(nn.ModuleList([copy.deepcopy(plain)]))[0]
    assert type(fused) is not kind
    assert isinstance(fused, kind)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    found = []
    for each in (plain, fused):
        own = x.clone().requires_grad_(True)
        out = each(own)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
        found.append((out.detach(), own.grad, *(p.grad for p in each.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_one_wide_tensor_less_is_kept():
    def kept(module):
        held = {}

        def hold(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            module(torch.randn(64, 16, dtype=torch.float64, requires_grad=True))
        return sum(tensor.nbytes for tensor in held.values())

    plain = layer(LlamaMLP, LlamaConfig)
    fused = fuse_gates(nn.ModuleList([copy.deepcopy(plain)]))[0]
    assert kept(plain) - kept(fused) == 64 * 40 * 8


def test_other_layers_stay():
    phi = Phi3MLP(Phi3Config(hidden_size=16, intermediate_size=40, num_attention_heads=2, num_key_value_heads=2))
    gelu = layer(LlamaMLP, LlamaConfig, hidden_act="gelu_pytorch_tanh")
    model = fuse_gates(nn.ModuleList([phi, gelu]))
    assert [type(module) for module in model] == [Phi3MLP, LlamaMLP]


def test_once_is_enough():
    model = nn.ModuleList([layer(LlamaMLP, LlamaConfig)])
    kind = type(fuse_gates(model)[0])
    assert type(fuse_gates(model)[0]) is kind
    assert type(copy.deepcopy(model)[0]) is kind
