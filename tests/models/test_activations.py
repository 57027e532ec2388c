"""GELU fused: the same numbers, fewer tensors kept, in every way that a model comes in."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from posttrain.models.activations import fuse_activations
from posttrain.models.given import GivenModel
from posttrain.models.load import load_causal_lm
from posttrain.models.skeleton import skeleton


def kept_bytes(work, x):
    """Bytes of the different tensors that autograd keeps for the backward pass of ``work(x)``."""
    held = {}

    def hold(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        work(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_the_fused_form_is_the_same_function_and_keeps_its_input_alone(name):
    spelled_out = nn.Sequential(nn.Identity(), ACT2FN[name])
    fused = fuse_activations(nn.Sequential(nn.Identity(), ACT2FN[name]))
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64, requires_grad=True)
    grads = [torch.autograd.grad(act(x).sum(), x)[0] for act in (spelled_out, fused)]
    assert torch.allclose(spelled_out(x), fused(x), atol=1e-9, rtol=0)
    assert torch.allclose(*grads, atol=1e-9, rtol=0)
    y = torch.randn(1000, requires_grad=True) * 1.0
    assert kept_bytes(fused, y) == y.nbytes
    assert kept_bytes(spelled_out, y) >= 3 * y.nbytes


def test_other_activations_stay():
    acts = nn.ModuleList(ACT2FN[name] for name in ("gelu", "silu", "quick_gelu", "relu"))
    before = [type(act) for act in acts]
    assert [type(act) for act in fuse_activations(acts)] == before


def acts_of(model):
    return {type(module) for name, module in model.named_modules() if name.endswith(".act")}


def test_every_way_in_is_fused_and_the_owners_model_is_not(make_model, tmp_path):
    theirs = make_model("gpt2")
    theirs.save_pretrained(tmp_path)
    assert acts_of(theirs) == {type(ACT2FN["gelu_new"])}
    assert acts_of(load_causal_lm(tmp_path)) == {nn.GELU}
    assert acts_of(skeleton(tmp_path, dtype=torch.float32)) == {nn.GELU}
    assert acts_of(GivenModel(theirs)._view(trains_base=False)) == {nn.GELU}
    assert acts_of(theirs) == {type(ACT2FN["gelu_new"])}
