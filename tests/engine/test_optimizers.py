"""Each optimizer by its name: it steps, it learns at the rates of its groups, its state survives a checkpoint."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from posttrain.config.optim_names import HONOURED, optimizer_options
from posttrain.engine import OptimizerSettings, state
from posttrain.engine.optimizer import parameter_groups
from posttrain.engine.optimizers import make_optimizer, paging_note, state_bytes
from posttrain.errors import UserError
from posttrain.types import Role

CPU = torch.device("cpu")
PLAIN = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop", "adafactor")


def available(name):
    if name not in PLAIN and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")


def weights(seed=0):
    """A matrix large enough for states in 8 bits, a small one, a bias."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q.lora_A.actor.weight": (96, 64), "head.weight": (1, 5), "head.bias": (1,)}
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def built(name, parameters, **settings):
    settings = OptimizerSettings(**{"learning_rate": 1e-2, "name": name, **settings})
    return make_optimizer(parameter_groups({Role.ACTOR: parameters}, settings), settings, CPU)


def steps(optimizer, parameters, numbers):
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", HONOURED)
def test_a_resumed_one_goes_on_bit_by_bit(name, tmp_path) -> None:
    available(name)
    whole = weights()
    optimizer = built(name, whole, weight_decay=0.01)
    steps(optimizer, whole, range(3))
    assert all(not torch.equal(p, before) for p, before in zip(whole.values(), weights().values(), strict=True))
    state.write_weights(tmp_path, whole)
    state.write(tmp_path, optimizer, whole, {"step": 3})
    again = weights(seed=1)
    other = built(name, again, weight_decay=0.01)
    assert state.read(tmp_path, other, again) == {"step": 3}
    for each, parameters in ((optimizer, whole), (other, again)):
        steps(each, parameters, range(3, 6))
    assert all(torch.equal(p, again[key]) for key, p in whole.items())
    for key, parameter in whole.items():
        mine, theirs = optimizer.state[parameter], other.state[again[key]]
        assert {k for k, v in mine.items() if v is not None} == {k for k, v in theirs.items() if v is not None}


@pytest.mark.parametrize("name", HONOURED)
def test_the_rate_of_a_group_counts(name) -> None:
    available(name)
    if name == "adagrad":
        return
    moved = []
    for rate in (0.0, 1e-4, 1e-2):
        parameters = weights()
        optimizer = built(name, parameters)
        for group in optimizer.param_groups:
            assert group["initial_lr"] == 1e-2
            group["lr"] = rate
        steps(optimizer, parameters, range(1))
        before = weights()
        moved.append(max(float((p - before[key]).detach().abs().max()) for key, p in parameters.items()))
    assert moved[0] == 0
    assert moved[2] == pytest.approx(100 * moved[1], rel=0.05)


@pytest.mark.parametrize("name", [name for name in HONOURED if name != "adafactor"])
def test_states_take_as_many_bytes_as_planned(name) -> None:
    available(name)
    parameters = {"matrix": nn.Parameter(torch.zeros(256, 256))}
    optimizer = built(name, parameters)
    steps(optimizer, parameters, range(1))
    found = optimizer.state[parameters["matrix"]].items()
    size = sum(t.numel() * t.element_size() for key, t in found if torch.is_tensor(t) and "qmap" not in key)
    assert size / 256**2 == pytest.approx(state_bytes(name), rel=0.01, abs=0.01)


def test_states_in_eight_bits_are_in_eight_bits() -> None:
    available("adamw_8bit")
    parameters = weights()
    optimizer = built("adamw_8bit", parameters)
    steps(optimizer, parameters, range(1))
    kinds = {key: optimizer.state[p]["state1"].dtype for key, p in parameters.items()}
    assert kinds["q.lora_A.actor.weight"] == torch.uint8
    assert kinds["head.weight"] == torch.float32


def test_paged_is_unpaged_on_a_cpu_and_says_so() -> None:
    available("paged_adamw_8bit")
    assert "on cpu it is adamw_8bit" in (paging_note("paged_adamw_8bit", CPU) or "")
    assert paging_note("paged_adamw_8bit", torch.device("cuda")) is None
    assert paging_note("adamw_8bit", CPU) is None
    results = []
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        parameters = weights()
        steps(built(name, parameters), parameters, range(3))
        results.append(parameters)
    assert all(torch.equal(p, results[1][key]) for key, p in results[0].items())


def test_options_go_to_the_class() -> None:
    optimizer = built("sgd", weights(), options=optimizer_options("momentum=0.9, nesterov=true"))
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)
    with pytest.raises(UserError, match=r"optim_args: momentu is no argument of sgd, which takes .*momentum"):
        built("sgd", weights(), options={"momentu": 0.9})
    with pytest.raises(UserError, match="optim_args: sgd does not take"):
        built("sgd", weights(), options={"momentum": -1})
    assert built("adamw_torch", weights(), options={"foreach": True}).defaults["foreach"]
    with pytest.raises(UserError, match="optim_args: amsgrad of adamw_torch is such as False, not 'maybe'"):
        built("adamw_torch", weights(), options={"amsgrad": "maybe"})
    with pytest.raises(UserError, match=r"`0\.9` is not name=value"):
        optimizer_options("0.9")


def test_betas_and_epsilon_are_adams() -> None:
    assert built("adamw_torch", weights(), betas=(0.5, 0.6), eps=1e-3).defaults["betas"] == (0.5, 0.6)
    available("lion_8bit")
    assert built("lion_8bit", weights(), betas=(0.5, 0.6)).defaults["betas"] == (0.5, 0.6)
    assert built("adamw_8bit", weights(), betas=(0.5, 0.6), eps=1e-3).defaults["eps"] == 1e-3


def test_states_of_another_optimizer_are_refused(tmp_path) -> None:
    parameters = weights()
    optimizer = built("sgd", parameters)
    steps(optimizer, parameters, range(1))
    state.write_weights(tmp_path, parameters)
    state.write(tmp_path, optimizer, parameters, {"step": 1})
    with pytest.raises(UserError, match=r"another optimizer \(SGD, here Adafactor\). Use the same optim"):
        state.read(tmp_path, built("adafactor", weights()), weights())


def test_without_the_library_one_sentence_names_key_and_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"optim: adamw_8bit needs bitsandbytes, .* `pip install bitsandbytes`"):
        built("adamw_8bit", weights())
