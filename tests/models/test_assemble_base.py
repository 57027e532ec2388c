"""Full and freeze fine-tuning: which weights of the base train, and in which precision."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import UserError
from posttrain.models import assemble_offline, backbone
from posttrain.models.assemble import offline_assembly
from posttrain.types import Role


@pytest.fixture
def offline(tiny_config, tmp_path):
    def make(**keys):
        return offline_assembly(tiny_config("sft", tmp_path / "out", **keys))

    return make


def chosen(offline, **keys):
    assembly = offline(finetuning_type="freeze", **keys)
    trainable = {n.removeprefix("backbone.") for n, p in assembly.roles.named_parameters() if p.requires_grad}
    assert trainable == {n.removeprefix("backbone.") for n in assembly.roles.parameters_of(Role.ACTOR)}
    return trainable


def test_freeze_takes_the_layers_it_is_told(offline, make_model) -> None:
    last = chosen(offline, freeze_trainable_layers=1)
    first = chosen(offline, freeze_trainable_layers=-1)
    assert {name.split(".")[2] for name in last} == {"1"}
    assert {name.split(".")[2] for name in first} == {"0"}
    assert len(last) == len(first) == 9
    some = chosen(offline, freeze_trainable_layers=2, freeze_trainable_modules="mlp")
    assert len(some) == 6
    assert all(".mlp." in name for name in some)
    extra = chosen(offline, freeze_trainable_layers=1, freeze_extra_modules="embed_tokens")
    assert extra - last == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"freeze_trainable_layers": 3}, "the model has 2 layers"),
        ({"freeze_trainable_layers": -3}, "freeze_trainable_layers is -3; the model has 2 layers"),
        ({"freeze_trainable_modules": "nonsense"}, "no parameter of the chosen layers is called nonsense"),
    ],
)
def test_freeze_refuses_what_is_not_there(offline, keys, message) -> None:
    with pytest.raises(UserError, match=message):
        offline(finetuning_type="freeze", **keys)


def test_full_is_everything(offline, make_model) -> None:
    assembly = offline(finetuning_type="full")
    everything = {f"backbone.{name}" for name, _ in assembly.roles.backbone.named_parameters()}
    assert set(assembly.roles.parameters_of(Role.ACTOR)) == everything
    assert len(everything) == 2 * 9 + 3


def test_full_training_says_that_half_precision_is_not_used(offline, monkeypatch) -> None:
    cuda, loaded = torch.device("cuda"), []
    real = backbone.load_causal_lm

    def load(folder, *, dtype, device, **options):
        loaded.append(dtype)
        return real(folder, dtype="float32", device="cpu", **options)

    monkeypatch.setattr(backbone, "load_causal_lm", load)
    monkeypatch.setattr(backbone, "device", lambda: cuda)
    monkeypatch.setattr(assemble_offline, "device", lambda: cuda)
    assert any("full trains the weights themselves" in n for n in offline(finetuning_type="full", bf16=True).notes)
    assert offline(bf16=True).notes == ()
    assert offline().notes == ()
    assert loaded == ["float32", "bfloat16", "float32"]
