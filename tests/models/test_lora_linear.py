"""LoRA as one operation: peft's own numbers and gradients, and peft itself for every other kind of adapter."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model, set_adapter
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

from posttrain.models.lora_linear import FusedLoraLinear, fuse


def two_layers(kind="linear", bias=True, dtype=torch.float64, **options):
    """A pair of models with adapters `parent` and `own` in them, the first fused, the second as peft made it."""
    torch.manual_seed(0)
    layer = Conv1D(12, 20) if kind == "conv" else nn.Linear(20, 12, bias=bias)
    model = nn.Sequential(layer)
    for name, rank in (("parent", 3), ("own", 4)):
        config = LoraConfig(r=rank, lora_alpha=7, target_modules=["0"], fan_in_fan_out=kind == "conv", **options)
        inject_adapter_in_model(config, model, adapter_name=name)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.to(dtype)
    plain = copy.deepcopy(model)
    fuse(model)
    for each in (model, plain):
        set_adapter(each, ["parent", "own"])
        for name, parameter in each.named_parameters():
            parameter.requires_grad_(".own." in name)
    assert type(model[0]) is FusedLoraLinear
    assert type(plain[0]) is LoraLinear
    return model, plain


def answers(model, x, *, x_trains=True):
    """Output and all gradients."""
    model.zero_grad()
    x = x.clone().requires_grad_(x_trains)
    out = model(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    (out * weights).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return out.detach(), x.grad, grads


def assert_same(model, plain, x, **options):
    out, grad, grads = answers(model, x, **options)
    wanted, wanted_grad, wanted_grads = answers(plain, x, **options)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(grad, wanted_grad)
    for name, expected in wanted_grads.items():
        assert (grads[name] is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(grads[name], expected)


@pytest.mark.parametrize(("kind", "bias"), [("linear", True), ("linear", False), ("conv", True)])
@pytest.mark.parametrize("x_trains", [True, False])
def test_output_and_gradients_are_those_of_peft(kind, bias, x_trains):
    model, plain = two_layers(kind, bias)
    x = torch.randn(2, 5, 20, dtype=torch.float64)
    assert_same(model, plain, x, x_trains=x_trains)


def test_gradients_are_those_of_the_formula():
    model, _ = two_layers()
    x = torch.randn(1, 3, 20, dtype=torch.float64, requires_grad=True)
    layer = model[0]
    down, up = layer.lora_A["own"].weight, layer.lora_B["own"].weight

    def forward(x, down, up):
        return torch.func.functional_call(
            model, {"0.lora_A.own.weight": down, "0.lora_B.own.weight": up}, (x,), strict=False
        )

    assert torch.autograd.gradcheck(forward, (x, down, up))


@pytest.mark.parametrize("worn", [[], ["own"], ["parent"], ["own", "parent"]])
def test_only_what_is_worn_counts(worn):
    model, plain = two_layers()
    for each in (model, plain):
        set_adapter(each, worn)
        for name, parameter in each.named_parameters():
            parameter.requires_grad_(".own." in name)
    x = torch.randn(4, 20, dtype=torch.float64)
    if "own" in worn:
        assert_same(model, plain, x)
    else:
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_are_left_to_peft(options):
    model, plain = two_layers(**options)
    assert not model[0]._is_plain("own", torch.zeros(1, 20, dtype=torch.float64))
    for each in (model, plain):
        set_adapter(each, ["own"])
    x = torch.randn(4, 20, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))


def test_dropout_is_left_to_peft_while_it_drops():
    model, plain = two_layers(lora_dropout=0.5)
    x = torch.randn(4, 20, dtype=torch.float64)
    torch.manual_seed(1)
    out = model.train()(x)
    torch.manual_seed(1)
    torch.testing.assert_close(out, plain.train()(x))
    assert not torch.allclose(out, model.eval()(x))
    assert_same(model.eval(), plain.eval(), x)


def test_a_base_that_trains_is_left_to_peft():
    model, plain = two_layers()
    for each in (model, plain):
        each[0].base_layer.weight.requires_grad_(True)
    assert_same(model, plain, torch.randn(4, 20, dtype=torch.float64))
    assert model[0].base_layer.weight.grad is not None


def test_mixed_precision_is_left_to_peft():
    model, plain = two_layers(dtype=torch.float32)
    x = torch.randn(4, 20)
    for each in (model, plain):
        each[0].base_layer.to(torch.bfloat16)
    out = model(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, plain(x.bfloat16()))


def test_no_more_is_kept_for_backward_than_by_peft():
    def kept(model):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(64, 20, dtype=torch.float64, requires_grad=True))
        return sum(sizes.values())

    model, plain = two_layers()
    assert kept(model) <= kept(plain)
