"""A base in 4 or 8 bits by the real bitsandbytes on the CPU: one function everywhere, gradients, bits kept."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from posttrain.errors import UserError
from posttrain.models import quantize as quantizing
from posttrain.models.adapters import adapter_parameters, add_adapter, fold, lora_config, lora_layers, merged, wear
from posttrain.models.forward import prepare_trunk
from posttrain.models.lineage import fingerprint
from posttrain.models.quantize import Int8Linear, Quantization, is_quantized, quantization, quantize

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
WAYS = [
    Quantization(bits=4, kind="nf4", double=True),
    Quantization(bits=4, kind="nf4", double=False),
    Quantization(bits=4, kind="fp4", double=True),
    Quantization(bits=8),
]
IDS = torch.tensor([[9, 10, 11, 12, 13, 14, 20, 33]])
CPU = torch.device("cpu")


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def quantized(model, how):
    quantize(model, how, CPU, torch.float32)
    return model


def dressed(model, how, seed=0):
    """A quantised model under an adapter whose B is not zero."""
    quantized(model, how)
    config = lora_config(model, rank=4, alpha=8, dropout=0.0, targets=("all",))
    add_adapter(model, "own", config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model, "own").values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def dequantized(layer):
    if isinstance(layer, Int8Linear):
        return layer.dequantized()
    import bitsandbytes

    return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@needs_bitsandbytes
@pytest.mark.parametrize("how", WAYS, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_quantised_model_is_the_model_with_rounded_weights(make_model, family, how) -> None:
    exact, model = make_model(family), quantized(make_model(family), how)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    assert len(layers) == (8 if family == "gpt2" else 14)
    with torch.no_grad():
        for name in layers:
            weight = dequantized(model.get_submodule(name))
            plain = exact.get_submodule(name)
            plain.weight.copy_(weight.T if family == "gpt2" else weight)
    torch.testing.assert_close(logits(model), logits(exact), atol=1e-4, rtol=1e-4)
    gap = (logits(model) - logits(make_model(family))).abs().max()
    assert gap > (1e-4 if how.bits == 8 else 1e-3)


@needs_bitsandbytes
def test_eight_bits_are_within_half_a_step_of_each_weight(make_model) -> None:
    """A step is the largest of the row over 127; the weight is rounded to float16 before."""
    exact, model = make_model(), quantized(make_model(), WAYS[-1])
    for name, layer in model.named_modules():
        if isinstance(layer, Int8Linear):
            weight = exact.get_submodule(name).weight
            step = weight.abs().amax(dim=1, keepdim=True) / 127
            assert ((layer.dequantized() - weight).abs() <= 0.51 * step + 1e-3 * weight.abs()).all()


@needs_bitsandbytes
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_head_embedding_and_norms_keep_their_bits(make_model, how) -> None:
    before, model = make_model(), quantized(make_model(), how)
    assert type(model.lm_head) is nn.Linear
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(dict(model.named_parameters())[name], dict(before.named_parameters())[name])
    assert {p.dtype for n, p in model.named_parameters() if "proj" in n} == {
        torch.uint8 if how.bits == 4 else torch.int8
    }
    assert is_quantized(model)
    assert not is_quantized(before)
    assert quantization(model) == str(how)


@needs_bitsandbytes
def test_the_fingerprint_is_that_of_the_unquantised_weights(make_model) -> None:
    for how in WAYS:
        model = quantized(make_model(), how)
        assert fingerprint(model) == fingerprint(make_model())
        assert fingerprint(dressed(make_model(seed=12), how)) == fingerprint(make_model(seed=12))
    assert fingerprint(make_model()) != fingerprint(make_model(seed=12))


@needs_bitsandbytes
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_training_evaluation_and_single_tokens_say_the_same(make_model, how) -> None:
    model = dressed(make_model(), how)
    wear(model, ["own"])
    model.train()
    with_gradient = model(input_ids=IDS).logits
    model.eval()
    torch.testing.assert_close(logits(model), with_gradient.detach(), atol=1e-5, rtol=1e-5)
    layer = next(lora_layers(model)).get_base_layer()
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = torch.cat([layer(row[None]) for row in x])
        torch.testing.assert_close(layer(x), alone, atol=1e-5, rtol=1e-5)


@needs_bitsandbytes
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_gradients_are_those_of_the_dequantised_model(make_model, how) -> None:
    model = dressed(make_model(), how)
    wear(model, ["own"])
    exact = make_model()
    config = lora_config(exact, rank=4, alpha=8, dropout=0.0, targets=("all",))
    add_adapter(exact, "own", config)
    with torch.no_grad():
        for name, parameter in adapter_parameters(exact, "own").items():
            parameter.copy_(adapter_parameters(model, "own")[name])
        for ours, plain in zip(lora_layers(model), lora_layers(exact), strict=True):
            plain.get_base_layer().weight.copy_(dequantized(ours.get_base_layer()))
    wear(exact, ["own"])
    for each in (model, exact):
        each(input_ids=IDS, labels=IDS).loss.backward()
    wanted = adapter_parameters(exact, "own")
    for name, parameter in adapter_parameters(model, "own").items():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for n, p in model.named_parameters() if ".lora_" not in n)


@needs_bitsandbytes
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_packed_attention_holds_on_it(make_model, how) -> None:
    assert prepare_trunk(quantized(make_model("qwen2"), how))


@needs_bitsandbytes
def test_an_adapter_is_worn_where_it_would_be_merged_and_never_folded(make_model) -> None:
    model = dressed(make_model(), WAYS[0])
    wear(model, ["own"])
    worn, codes = logits(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    wear(model, [])
    assert (logits(model) - worn).abs().max() > 1e-2
    with merged(model, ["own"]):
        assert torch.equal(logits(model), worn)
    assert all(torch.equal(p, codes[n]) for n, p in model.named_parameters())
    with pytest.raises(ValueError, match="nothing can be added to quantised weights"):
        fold(model, ["own"])


def test_without_the_library_one_sentence_names_the_command(make_model, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"quantization_bit needs bitsandbytes, .* `pip install bitsandbytes`, or"):
        quantizing.bitsandbytes()
