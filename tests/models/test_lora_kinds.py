"""DoRA and PiSSA inside a plain model, against peft's own; what is saved loads with peft on the base as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from posttrain.errors import UserError
from posttrain.models.adapter_files import read_adapter, write_adapter
from posttrain.models.adapters import (
    adapter_parameters,
    adapter_state,
    add_adapter,
    check_stack,
    fold,
    lora_config,
    merged,
    wear,
)
from posttrain.models.chains import chain
from posttrain.models.merging import merge
from posttrain.models.pissa import on_the_original, start_from_singular_vectors

IDS = torch.tensor([[9, 10, 11, 12, 13, 14]])
FAMILIES = ["llama", "gpt2"]


def settings(model, **changes):
    return lora_config(model, **{"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ("all",), **changes})


def moved(model, name, config, seed=0):
    """Put in an adapter as training would leave it: A and B random, DoRA's magnitudes off by up to a fifth."""
    add_adapter(model, name, config, seed=seed)
    move(model, name, seed)
    return model


def move(model, name, seed=0):
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for key, parameter in adapter_parameters(model, name).items():
            noise = torch.randn(parameter.shape, generator=generator)
            if "magnitude" in key:
                parameter.mul_(1 + 0.2 * noise.clamp(-1, 1))
            else:
                parameter.add_(0.2 * noise)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" not in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_dora_changes_nothing(make_model, family) -> None:
    model = make_model(family)
    before = logits(model)
    add_adapter(model, "own", settings(model, use_dora=True))
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_dora_is_pefts_own_saved_and_loaded(make_model, family, tmp_path) -> None:
    model = make_model(family)
    config = settings(model, use_dora=True)
    moved(model, "own", config)
    write_adapter(tmp_path, config, adapter_state(model, "own"), base_model_name_or_path="base")
    assert (logits(model) - logits(make_model(family))).abs().max() > 0.1
    theirs = PeftModel.from_pretrained(make_model(family), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=1e-5)
    again = make_model(family)
    add_adapter(again, "other", read_adapter(tmp_path).config, read_adapter(tmp_path).state)
    assert torch.equal(logits(again), logits(model))
    theirs.save_pretrained(tmp_path / "theirs")
    assert read_adapter(tmp_path / "theirs").state.keys() == read_adapter(tmp_path).state.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_dora_folded_and_merged_say_what_it_says(make_model, family) -> None:
    model = moved(make_model(family), "own", settings(make_model(family), use_dora=True))
    worn, pristine = logits(model), weights(model)
    with merged(model, ["own"]):
        torch.testing.assert_close(logits(model), worn, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(p, pristine[name]) for name, p in weights(model).items())
    fold(model, ["own"])
    torch.testing.assert_close(logits(model), worn, atol=1e-4, rtol=1e-4)


def test_lora_over_dora_adds_up_and_dora_over_lora_is_refused(make_model) -> None:
    model = moved(make_model(), "dora", settings(make_model(), use_dora=True))
    moved(model, "plain", settings(model), seed=1)
    wear(model, ["dora", "plain"])
    worn = logits(model)
    with merged(model, ["dora", "plain"]):
        torch.testing.assert_close(logits(model), worn, atol=1e-4, rtol=1e-4)
    check_stack(model, ["dora", "plain"])
    with pytest.raises(UserError, match="use_dora: the DoRA adapter 'dora' would be worn over plain"):
        check_stack(model, ["plain", "dora"])


def test_a_chain_with_dora_on_top_stands_on_the_weights_that_hold_the_rest(make_model, tmp_path) -> None:
    trained = moved(make_model(), "first", settings(make_model()))
    first = adapter_state(trained, "first")
    fold(trained, ["first"])
    config = settings(trained, use_dora=True)
    moved(trained, "second", config, seed=1)
    wear(trained, ["second"])
    wanted = logits(trained)
    write_adapter(tmp_path / "1", settings(make_model()), first, base_model_name_or_path="base")
    write_adapter(tmp_path / "2", config, adapter_state(trained, "second"), base_model_name_or_path="base")
    links = chain([tmp_path / "1", tmp_path / "2"])
    model = make_model()
    asked = merge(model, links, lambda: logits(model))
    torch.testing.assert_close(asked, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
    several = make_model()
    for name, link in zip(("a", "b"), links, strict=True):
        add_adapter(several, name, link.files.config, link.files.state)
    with merged(several, ["a", "b"]):
        torch.testing.assert_close(logits(several), wanted, atol=1e-4, rtol=1e-4)


def test_magnitudes_train_with_their_adapter(make_model) -> None:
    model = moved(make_model(), "own", settings(make_model(), use_dora=True))
    wear(model, ["own"])
    model(input_ids=IDS, labels=IDS).loss.backward()
    parameters = adapter_parameters(model, "own")
    assert sum("lora_magnitude_vector" in key for key in parameters) == 14
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("iterations", [-1, 16])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa_starts_as_the_base_and_is_saved_as_lora_on_it(
    make_model, family, iterations, use_rslora, tmp_path
) -> None:
    model = make_model(family)
    before = logits(model)
    config = settings(model, use_rslora=use_rslora)
    add_adapter(model, "own", config)
    base = weights(model)
    initial = start_from_singular_vectors(model, "own", iterations)
    assert any(not torch.equal(p, base[name]) for name, p in weights(model).items())
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=1e-4)
    move(model, "own")
    assert (logits(model) - before).abs().max() > 0.1
    plain, state = on_the_original(config, adapter_state(model, "own"), initial)
    assert plain.r == 8
    write_adapter(tmp_path, plain, state, base_model_name_or_path="base")
    theirs = PeftModel.from_pretrained(make_model(family), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-4, rtol=1e-4)


def test_pissa_takes_out_what_peft_takes_out(make_model) -> None:
    ours, theirs = make_model(), make_model()
    config = settings(ours)
    add_adapter(ours, "default", config)
    start_from_singular_vectors(ours, "default", -1)
    wrapped = get_peft_model(theirs, LoraConfig(**{**copy.deepcopy(config).to_dict(), "init_lora_weights": "pissa"}))
    rest = {k: p for k, p in wrapped.base_model.model.named_parameters() if ".base_layer." in k}
    assert len(rest) == 14
    for key, parameter in ours.named_parameters():
        if ".base_layer." in key:
            torch.testing.assert_close(parameter, rest[key], atol=1e-5, rtol=1e-4)


def test_pissa_is_the_same_again(make_model) -> None:
    first, second = make_model(), make_model()
    for number, model in enumerate((first, second)):
        add_adapter(model, "own", settings(model), seed=number)
        torch.rand(number + 1)
        start_from_singular_vectors(model, "own", 4)
    assert all(torch.equal(p, adapter_state(second, "own")[key]) for key, p in adapter_state(first, "own").items())


@pytest.mark.parametrize("iterations", [-1, 4])
def test_pissa_with_more_ranks_than_a_layer_has_singular_vectors_is_refused(make_model, iterations) -> None:
    model = make_model("llama")
    add_adapter(model, "own", settings(model, rank=20, targets=("k_proj",)))
    with pytest.raises(UserError, match=r"`lora_rank: 20` is more than the 16 singular vectors of a layer of 16 x 32"):
        start_from_singular_vectors(model, "own", iterations)
