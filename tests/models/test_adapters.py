"""LoRA inside a plain model: targets, seeds, wearing, folding, merging; against peft's own wrapper."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model

from posttrain.errors import UserError
from posttrain.models.adapters import (
    adapter_parameters,
    adapter_state,
    add_adapter,
    base_weight,
    fold,
    has_room_to_merge,
    linear_names,
    lora_config,
    lora_layers,
    merged,
    wear,
)

LINEAR = {
    "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
}
IDS = torch.tensor([[9, 10, 11, 12, 13, 14]])


def settings(model, **changes):
    return lora_config(model, **{"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ("all",), **changes})


def filled(model, name, config=None, seed=0):
    """Put in an adapter whose B is not zero."""
    add_adapter(model, name, config or settings(model), seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in adapter_parameters(model, name).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" not in name}


@pytest.mark.parametrize("family", LINEAR)
def test_all_is_every_linear_layer_but_the_head(make_model, family) -> None:
    model = make_model(family)
    assert linear_names(model) == LINEAR[family]
    add_adapter(model, "first", settings(model))
    assert linear_names(model) == LINEAR[family]
    layers = {name.split(".lora_A.")[0] for name in adapter_parameters(model, "first") if ".lora_A." in name}
    linear = torch.nn.Linear if family == "llama" else type(make_model("gpt2").transformer.h[0].attn.c_attn)
    count = sum(type(m) is linear for n, m in make_model(family).named_modules() if n != "lm_head")
    assert len(layers) == count == (14 if family == "llama" else 8)


def test_an_unknown_target_names_those_there_are(make_model) -> None:
    model = make_model("gpt2")
    with pytest.raises(UserError, match=r"lora_target names q_proj, but GPT2LMHeadModel .* c_attn, c_fc, c_proj"):
        settings(model, targets=("q_proj", "c_fc"))
    assert settings(make_model("llama"), targets=("q_proj", "v_proj")).target_modules == {"q_proj", "v_proj"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_same_function_as_pefts_wrapper(make_model, family, use_rslora) -> None:
    ours = make_model(family)
    config = settings(ours, use_rslora=use_rslora)
    filled(ours, "own", config)
    theirs = get_peft_model(make_model(family), copy.deepcopy(config))
    theirs.load_state_dict(
        {key.replace(".weight", ".default.weight"): value for key, value in adapter_state(ours, "own").items()},
        strict=False,
    )
    assert (logits(ours) - logits(make_model(family))).abs().max() > 0.1
    torch.testing.assert_close(logits(ours), logits(theirs.eval()), atol=1e-5, rtol=1e-5)


def test_a_fresh_adapter_changes_nothing_and_follows_seed_and_name(make_model) -> None:
    states = {}
    for seed, name in ((0, "a"), (0, "b"), (1, "a"), (0, "a")):
        model = make_model()
        expected = logits(model)
        before = torch.random.get_rng_state()
        add_adapter(model, name, settings(model), seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(logits(model), expected)
        state = adapter_state(model, name)
        if (seed, name) in states:
            assert all(torch.equal(state[key], value) for key, value in states[seed, name].items())
        states[seed, name] = state
    first, other, reseeded = ([v for k, v in s.items() if "lora_A" in k] for s in states.values())
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, reseeded, strict=True))


def test_state_out_and_in_again(make_model) -> None:
    source, target = filled(make_model(), "one"), make_model()
    state = adapter_state(source, "one")
    assert all(key.startswith("base_model.model.model.layers.") for key in state)
    add_adapter(target, "two", settings(target), state)
    assert torch.equal(logits(target), logits(source))


def test_a_state_of_another_model_names_the_first_difference(make_model) -> None:
    state = adapter_state(filled(make_model(), "own"), "own")
    wrong = {key: value[:, :-1] if "lora_A" in key else value for key, value in state.items()}
    fewer = dict(list(state.items())[2:])
    for bad in (wrong, fewer):
        model = make_model()
        with pytest.raises(UserError, match=r"adapter 'own' does not fit this model: \d+ layers differ, the first is"):
            add_adapter(model, "own", settings(model), bad)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wearing_adds_up(make_model, family) -> None:
    """Two adapters worn together are the sum of both deltas; none is the bare base, bit for bit."""
    model = filled(filled(make_model(family), "one"), "two", seed=5)
    bare = logits(make_model(family))
    wear(model, ())
    assert torch.equal(logits(model), bare)
    summed = make_model(family)
    for name in ("one", "two"):
        add_adapter(summed, name, settings(summed), adapter_state(model, name))
        fold(summed, [name])
    wear(model, ("one", "two"))
    torch.testing.assert_close(logits(model), logits(summed), atol=1e-5, rtol=1e-5)
    wear(model, ("two",))
    assert (logits(model) - logits(summed)).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("names", [("one",), ("one", "two")])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_fold_equals_wearing(make_model, family, names, use_rslora) -> None:
    model = make_model(family).double()
    for number, name in enumerate(("one", "two")):
        filled(model, name, settings(model, use_rslora=use_rslora), seed=number)
    wear(model, names)
    worn = logits(model)
    fold(model, names)
    assert not any(adapter_parameters(model, name) for name in names)
    wear(model, ())
    torch.testing.assert_close(logits(model), worn, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("names", [("one",), ("two", "one"), ()])
def test_merged_equals_worn_and_leaves_no_trace(make_model, family, names) -> None:
    model = filled(filled(make_model(family), "one"), "two", seed=5)
    before = weights(model)
    wear(model, names)
    worn = logits(model)
    for _ in range(3):
        with merged(model, names):
            torch.testing.assert_close(logits(model), worn, atol=1e-5, rtol=1e-5)
            if names:
                assert not all(torch.equal(before[name], p) for name, p in weights(model).items())
    assert all(torch.equal(before[name], p) for name, p in weights(model).items())


def test_without_room_for_copies_adapters_are_worn(make_model, monkeypatch) -> None:
    model = filled(filled(make_model(), "one"), "two", seed=1)
    wear(model, ["one"])
    worn, before = logits(model), weights(model)
    monkeypatch.setattr("posttrain.models.adapters.has_room_to_merge", lambda model: False)
    wear(model, ["two"])
    with merged(model, ["one"]):
        assert torch.equal(logits(model), worn)
        assert all(torch.equal(before[name], p) for name, p in weights(model).items())


def test_a_cpu_has_room_and_a_gpu_is_asked(make_model, monkeypatch) -> None:
    model = filled(make_model(), "one")
    assert has_room_to_merge(model)
    layers = [base_weight(layer) for layer in lora_layers(model)]
    need = sum(weight.nbytes for weight in layers)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), nbytes=need)
    monkeypatch.setattr("posttrain.models.adapters.lora_layers", lambda model: [None])
    monkeypatch.setattr("posttrain.models.adapters.base_weight", lambda layer: on_gpu)
    gpu = {"free": 10 * need, "reserved": 3 * need, "allocated": 2 * need, "fraction": 1.0}
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda where: gpu["allocated"])
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda where: gpu["reserved"])
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda where: (gpu["free"], 20 * need))
    monkeypatch.setattr("torch.cuda.get_per_process_memory_fraction", lambda where: gpu["fraction"])
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda where: SimpleNamespace(total_memory=20 * need))
    assert has_room_to_merge(model)
    gpu["fraction"] = 0.15  # 3 of which 2 are taken: the copies alone would fit
    assert not has_room_to_merge(model)
    gpu |= {"fraction": 1.0, "free": need // 8}  # 1 is reserved and unused
    assert not has_room_to_merge(model)
    gpu["free"] = need // 2
    assert has_room_to_merge(model)


def test_merged_restores_after_an_error(make_model) -> None:
    model = filled(make_model(), "one")
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), merged(model, ["one"]):
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], p) for name, p in weights(model).items())


def test_adapters_on_different_layers(make_model) -> None:
    """A layer that one of two adapters leaves alone is merged with the other only."""
    model = make_model()
    filled(model, "first", settings(model, targets=("q_proj",)))
    filled(model, "second", settings(model, targets=("v_proj",)), seed=1)
    wear(model, ("first", "second"))
    worn = logits(model)
    with merged(model, ("first", "second")):
        torch.testing.assert_close(logits(model), worn, atol=1e-5, rtol=1e-5)
    fold(model, ("first",))
    wear(model, ("second",))
    torch.testing.assert_close(logits(model), worn, atol=1e-5, rtol=1e-5)


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
def test_adapters_of_a_half_precision_model_are_float32(make_model, dtype) -> None:
    """Weights that train keep steps of a millionth, which half precision would lose."""
    state = adapter_state(filled(make_model(), "own"), "own")
    model = make_model().to(dtype)
    add_adapter(model, "own", settings(model), state)
    add_adapter(model, "fresh", settings(model))
    for name in ("own", "fresh"):
        assert {p.dtype for p in adapter_parameters(model, name).values()} == {torch.float32}
    assert all(torch.equal(state[key], value) for key, value in adapter_state(model, "own").items())
    wear(model, ("own", "fresh"))
    assert model(IDS).logits.dtype == dtype
    double = make_model().double()
    add_adapter(double, "own", settings(double))
    assert {p.dtype for p in adapter_parameters(double, "own").values()} == {torch.float64}


@pytest.mark.parametrize("dtype", HALVES)
def test_folding_and_merging_round_once_to_the_dtype_of_the_base(make_model, dtype) -> None:
    model = filled(filled(make_model().to(dtype), "one"), "two", seed=5)
    projection = model.model.layers[0].self_attn.q_proj
    exact = projection.base_layer.weight.float() + sum(projection.get_delta_weight(name) for name in ("one", "two"))
    with merged(model, ("one", "two")):
        assert torch.equal(projection.base_layer.weight, exact.to(dtype))
        assert model(IDS).logits.dtype == dtype
    fold(model, ("one", "two"))
    assert torch.equal(projection.base_layer.weight, exact.to(dtype))
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("target", "message"),
    [("lm_head", "changes the output head lm_head, .*posttrain export"), ("embed_tokens", "which is no linear layer")],
)
def test_layers_whose_change_would_be_ignored_are_refused(make_model, target, message) -> None:
    model = make_model()
    config = settings(model)
    config.target_modules = {*config.target_modules, target}
    with pytest.raises(UserError, match=message):
        add_adapter(model, "own", config)
    if target == "lm_head":
        add_adapter(make_model(), "own", config, on_head=True)


def test_an_adapter_with_dropout_is_as_quiet_as_its_model(make_model) -> None:
    """In evaluation mode nothing is dropped, though the adapter's own configuration has a dropout."""
    model = make_model()
    config = lora_config(model, rank=2, alpha=4, dropout=0.9, targets=("all",))
    add_adapter(model, "noisy", config, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    ids = torch.arange(8, 20)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
