"""Models whose linear layers compute by ``products`` are the models they were."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from posttrain.functional import products
from posttrain.models.adapters import add_adapter, lora_config
from posttrain.models.linears import QuickConv1D, QuickLinear, quicken

MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97, hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_embd=128, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    ),
}  # fmt: skip


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("has_adapter", [True, False])
def test_outputs_and_gradients_stay(monkeypatch, family, has_adapter) -> None:
    torch.manual_seed(0)
    model = MODELS[family]()
    if has_adapter:
        config = lora_config(model, rank=16, alpha=16, dropout=0.0, targets=("all",))
        add_adapter(model, "own", config)
    plain, count, real = copy.deepcopy(model), [], products._linear
    monkeypatch.setattr(products, "has_onednn", lambda: True)
    monkeypatch.setattr(products, "_linear", lambda *given: count.append(1) or real(*given))
    quicken(model)
    ids = torch.randint(0, 97, (4, 40))
    losses = [one(input_ids=ids, labels=ids).loss for one in (model, plain)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    for loss in losses:
        loss.backward()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for (name, mine), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)
    assert len(count) > 20, "the test is about oneDNN"


def test_only_plain_layers_change_and_a_copy_is_its_own() -> None:
    model = MODELS["gpt2"]()
    quicken(model)
    twin = copy.deepcopy(model)
    assert type(model.lm_head) is QuickLinear
    assert type(model.transformer.h[0].mlp.c_fc) is QuickConv1D
    with torch.no_grad():
        twin.transformer.h[0].mlp.c_fc.weight.zero_()
        twin.transformer.h[0].mlp.c_fc.bias.zero_()
    assert twin.transformer.h[0].mlp.c_fc(torch.ones(1, 128)).abs().sum() == 0
    assert model.transformer.h[0].mlp.c_fc(torch.ones(1, 128)).abs().sum() > 0
