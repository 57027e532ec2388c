"""SwiGLU fused: the same layer with one wide tensor less kept, and only where it is that layer."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model, set_adapter
from torch import nn
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3Config, Phi3MLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3Config, Qwen3MLP

from posttrain.models.gated import fuse_gates
from posttrain.models.lora_linear import FusedLoraLinear, fuse


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


def kept(module):
    """Bytes that autograd holds of a pass over 64 tokens, parameters not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    held = {}

    def hold(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        module(torch.randn(64, 16, dtype=torch.float64, requires_grad=True))
    return sum(storage.nbytes() for storage in held.values())


def test_one_wide_tensor_less_is_kept():
    plain = layer(LlamaMLP, LlamaConfig)
    fused = fuse_gates(nn.ModuleList([copy.deepcopy(plain)]))[0]
    assert kept(plain) - kept(fused) == 64 * 40 * 8


def adapted(parents=("parent",), **options):
    """A gated layer of which each linear one wears adapters, the last of them in training."""
    module = fuse_gates(nn.ModuleList([layer(LlamaMLP, LlamaConfig)]))[0]
    for name in (*parents, "own"):
        config = LoraConfig(r=4, lora_alpha=7, target_modules=["gate_proj", "up_proj", "down_proj"], **options)
        inject_adapter_in_model(config, module, adapter_name=name)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    module.double()
    fuse(module)
    set_adapter(module, [*parents, "own"])
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".own." in name)
    assert type(module.down_proj) is FusedLoraLinear
    return module


def answers(module, x, *, x_trains):
    """Output and all gradients."""
    module.zero_grad()
    own = x.clone().requires_grad_(x_trains)
    out = module(own)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    return [out.detach(), own.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("x_trains", [True, False])
def test_the_last_layer_makes_its_input_again(monkeypatch, x_trains):
    module, x = adapted(), torch.randn(2, 7, 16, dtype=torch.float64)
    found, held = answers(module, x, x_trains=x_trains), kept(module)
    monkeypatch.setattr(FusedLoraLinear, "takes_gate", False)
    for one, other in zip(found, answers(module, x, x_trains=x_trains), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert kept(module) - held == 64 * 40 * 8


@pytest.mark.parametrize("worn", [[], ["parent"]])
def test_the_last_layer_may_wear_nothing_that_trains(monkeypatch, worn):
    module, x = adapted(), torch.randn(2, 7, 16, dtype=torch.float64)
    set_adapter(module, worn)
    found = module(x).detach()
    monkeypatch.setattr(FusedLoraLinear, "takes_gate", False)
    assert torch.equal(found, module(x).detach())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}])
def test_a_last_layer_of_another_kind_gets_the_product(monkeypatch, options):
    module, x = adapted(parents=(), **options), torch.randn(2, 7, 16, dtype=torch.float64)
    torch.manual_seed(1)
    found = answers(module, x, x_trains=True)
    monkeypatch.setattr(FusedLoraLinear, "takes_gate", False)
    torch.manual_seed(1)
    for one, other in zip(found, answers(module, x, x_trains=True), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_gradients_of_the_last_layer_are_those_of_the_formula():
    module = adapted()
    last = module.down_proj
    gate, up = (torch.randn(3, 40, dtype=torch.float64, requires_grad=True) for _ in range(2))
    matrices = last.lora_A["own"].weight, last.lora_B["own"].weight

    def forward(gate, up, down, wide):
        named = {"lora_A.own.weight": down, "lora_B.own.weight": wide}
        return torch.func.functional_call(last, named, (gate,), {"up": up}, strict=False)

    assert torch.autograd.gradcheck(forward, (gate, up, *matrices))


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
