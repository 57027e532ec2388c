"""Reward models that cannot be used are refused with one sentence, before anything large is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from posttrain.errors import UserError
from posttrain.models.reward_folder import load_reward_trunk, read_reward_folder

WIDTH = 32


@pytest.fixture
def base(make_model, tmp_path):
    """A causal language model's folder, without any head that scores."""
    make_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def write_classifier(base, tmp_path):
    """Write a sequence classifier's folder."""

    def write(labels=1):
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, pad_token_id=0)
        model.save_pretrained(tmp_path / "rm")
        return tmp_path / "rm"

    return write


def head(shift=0.0):
    return {"v_head.summary.weight": torch.full((1, WIDTH), 1 + shift), "v_head.summary.bias": torch.zeros(1)}


class Opaque:
    """Something that only running code could bring back."""


@pytest.mark.parametrize("stem", ["value_head", "pytorch_model"])
def test_a_bin_that_would_run_code(stem, base) -> None:
    (base / "model.safetensors").unlink()
    torch.save(head(), base / "pytorch_model.bin")
    torch.save({**head(), "args": Opaque()}, base / f"{stem}.bin")
    with pytest.raises(UserError, match=rf"{stem}\.bin is damaged or holds more than tensors.*{stem}\.safetensors"):
        read_reward_folder(base)


def test_an_adapter_bin_that_would_run_code(base, tmp_path) -> None:
    folder = tmp_path / "rm"
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"])).save_pretrained(
        folder
    )
    torch.save({**load_file(folder / "adapter_model.safetensors"), "args": Opaque()}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    save_file(head(), folder / "value_head.safetensors")
    with pytest.raises(UserError, match=r"adapter_model\.bin is damaged or holds more than tensors"):
        read_reward_folder(folder)


def test_a_bin_of_one_tensor(base) -> None:
    torch.save(torch.ones(1, WIDTH), base / "value_head.bin")
    with pytest.raises(UserError, match="it holds Tensor, not named tensors"):
        read_reward_folder(base)


def test_a_missing_head_says_what_was_looked_for(base, tmp_path) -> None:
    with pytest.raises(UserError, match=r"has no reward head: none of value_head\.safetensors, .*pytorch_model\.bin"):
        read_reward_folder(base)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter has no reward head: .*copy value_head\.safetensors too"):
        read_reward_folder(tmp_path / "adapter")


def test_encoders_have_no_score_head(tmp_path) -> None:
    size = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(**size, intermediate_size=8, num_labels=1)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no reward head"):
        read_reward_folder(tmp_path)


def test_two_heads_that_differ(base) -> None:
    save_file(head(), base / "value_head.safetensors")
    torch.save(head(), base / "value_head.bin")
    assert read_reward_folder(base).found.path.name == "value_head.safetensors"
    torch.save(head(shift=1), base / "value_head.bin")
    with pytest.raises(UserError, match=r"two heads that differ.* value_head\.safetensors and .* value_head\.bin"):
        read_reward_folder(base)


def test_a_classifier_with_a_value_head_beside_it(write_classifier) -> None:
    folder = write_classifier()
    save_file(head(), folder / "value_head.safetensors")
    with pytest.raises(UserError, match=r"v_head\.summary in value_head\.safetensors and score in model\.safetensors"):
        read_reward_folder(folder)


def test_an_adapter_beside_a_whole_model(write_classifier) -> None:
    folder = write_classifier()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).save_pretrained(folder)
    with pytest.raises(UserError, match="which of the two scores is not clear"):
        read_reward_folder(folder)


def test_more_labels_than_one(write_classifier) -> None:
    with pytest.raises(UserError, match=r"score\.weight has shape \(2, 32\).*num_labels 1"):
        read_reward_folder(write_classifier(labels=2))


def test_lora_on_the_head(write_classifier, tmp_path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(write_classifier())
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "score"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(UserError, match="LoRA changes the score layer itself"):
        read_reward_folder(tmp_path / "lora")


def test_another_width(write_classifier) -> None:
    with pytest.raises(UserError, match=r"hidden size 32, the model at hand has 64"):
        read_reward_folder(write_classifier()).head(64)


def test_missing_trunk_weights_are_named(write_classifier) -> None:
    folder = write_classifier()
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_reward_trunk(read_reward_folder(folder))


def test_folders_that_are_none(base, tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_reward_folder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        read_reward_folder(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither adapter_config\.json nor config\.json"):
        read_reward_folder(tmp_path / "empty")


def test_an_adapter_has_no_trunk(base, tmp_path) -> None:
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "rm")
    save_file(head(), tmp_path / "rm" / "value_head.safetensors")
    with pytest.raises(ValueError, match="no trunk of its own"):
        load_reward_trunk(read_reward_folder(tmp_path / "rm"))
