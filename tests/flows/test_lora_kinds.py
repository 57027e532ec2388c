"""Runs with DoRA, PiSSA and LoRA+: saved, continued, resumed, merged, and on a base in 4 bits."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from peft import PeftModel

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.models.adapter_files import read_adapter
from posttrain.models.assemble import offline_assembly, online_assembly
from posttrain.models.export import export_model
from posttrain.models.load import load_causal_lm
from posttrain.train.run import train
from posttrain.types import Role

IDS = torch.tensor([[9, 10, 11, 12, 13, 14, 20, 33]])
KINDS = {
    "dora": {"use_dora": True},
    "pissa": {"pissa_init": True},
    "lora+": {"loraplus_lr_ratio": 16},
    "all that goes together": {"use_dora": True, "use_rslora": True, "loraplus_lr_ratio": 4, "lora_dropout": 0.1},
}


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """Folder of a finished SFT run of a kind, with its checkpoints; made once."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("kinds") / "run"
            train(tiny_config("sft", made[kind], **KINDS[kind], learning_rate=1e-2, num_train_epochs=2, save_steps=3))
        return made[kind]

    return make


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_uninterrupted(tiny_config, run, tmp_path, kind) -> None:
    whole = run(kind)
    keys = {**KINDS[kind], "learning_rate": 1e-2, "num_train_epochs": 2, "save_steps": 3}
    train(tiny_config("sft", tmp_path / "again", **keys, resume_from_checkpoint=str(whole / "checkpoint-3")))
    again = read_adapter(tmp_path / "again").state
    assert all(torch.equal(tensor, again[key]) for key, tensor in read_adapter(whole).state.items())


@pytest.mark.parametrize("kind", ["dora", "pissa"])
def test_what_is_saved_says_the_same_with_peft_and_merged(
    tiny_config, tiny_llama, run, tmp_path, kind, make_batch
) -> None:
    folder = run(kind)
    base = load_causal_lm(tiny_llama)
    before = logits(base)
    loaded = PeftModel.from_pretrained(base, folder)
    assert (logits(loaded) - before).abs().max() > 0.01
    config = load_config(
        {"model_name_or_path": str(tiny_llama), "adapter_name_or_path": str(folder), "export_dir": str(tmp_path / "m")},
        command="export",
    )
    exported = load_causal_lm(export_model(config))
    torch.testing.assert_close(logits(exported), logits(loaded), atol=1e-4, rtol=1e-4)
    continued = offline_assembly(tiny_config("sft", tmp_path / "c", adapter_name_or_path=str(folder)))
    batch = make_batch([IDS[0].tolist()])
    with torch.no_grad():
        found = continued.roles(batch, (Role.ACTOR,)).logprobs
        wanted = logits(loaded).log_softmax(-1)[0, :-1].gather(-1, IDS[0, 1:, None])[:, 0]
    torch.testing.assert_close(found[0][batch.loss_mask[0]], wanted[batch.loss_mask[0, 1:]], atol=1e-4, rtol=1e-4)


def test_the_best_weights_of_a_pissa_run_are_saved_as_lora_too(tiny_config, run) -> None:
    for folder in (run("pissa"), run("pissa") / "checkpoint-3"):
        settings = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        assert (settings["r"], settings["lora_alpha"], settings["init_lora_weights"]) == (8, 16, True)


def test_lora_plus_is_another_run(run) -> None:
    plain, plus = read_adapter(run("dora")).state, read_adapter(run("lora+")).state
    steps = [max(t.abs().max() for k, t in state.items() if ".lora_B." in k) for state in (plain, plus)]
    assert steps[1] > 3 * steps[0]


def test_ppo_on_a_dora_parent_with_a_reward_on_the_base(tiny_config, trained, run, tmp_path) -> None:
    keys = {"reward_model": str(trained / "rm"), "adapter_name_or_path": str(run("dora"))}
    train(tiny_config("ppo", tmp_path / "out", **keys, max_steps=1, save_strategy="no"))
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_dora_actor_where_its_parents_are_in_the_weights(tiny_config, trained, tmp_path) -> None:
    keys = {"reward_model": str(trained / "rm_on_sft"), "adapter_name_or_path": str(trained / "sft")}
    config = tiny_config("ppo", tmp_path / "out", **keys, use_dora=True, critic="adapter", max_steps=1)
    said = []
    train(config, notify=said.append)
    assert any("the critic's is LoRA" in sentence for sentence in said)
    assert read_adapter(tmp_path / "out").config.use_dora


def test_a_dora_actor_over_a_parent_that_the_reward_does_not_wear_is_refused(tiny_config, trained, tmp_path) -> None:
    keys = {"reward_model": str(trained / "rm"), "adapter_name_or_path": str(trained / "sft")}
    with pytest.raises(UserError, match="use_dora: the DoRA adapter 'actor' would be worn over parent0"):
        online_assembly(tiny_config("ppo", tmp_path / "out", **keys, use_dora=True))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_dora_on_a_base_in_four_bits(tiny_config, trained, tmp_path) -> None:
    config = tiny_config("sft", tmp_path / "out", use_dora=True, quantization_bit=4, max_steps=2, save_strategy="no")
    train(config)
    assert any("magnitude" in key for key in read_adapter(tmp_path / "out").state)
    parent = {"adapter_name_or_path": str(trained / "sft"), "create_new_adapter": True}
    with pytest.raises(UserError, match="use_dora: the DoRA adapter 'actor' would be worn over shared0"):
        offline_assembly(tiny_config("sft", tmp_path / "o", use_dora=True, quantization_bit=4, **parent))
    eight = {"adapter_name_or_path": str(tmp_path / "out"), "quantization_bit": 8}
    with pytest.raises(UserError, match="is DoRA, which reads the base in 4 bits only"):
        offline_assembly(tiny_config("sft", tmp_path / "o", **eight))


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"use_dora": True, "pissa_init": True}, "do not go together"),
        ({"pissa_init": True, "quantization_bit": 4}, "cannot be changed exactly"),
        ({"pissa_init": True, "stage": "grpo", "reward_funcs": "length:2-9"}, "on which all roles of stage grpo stand"),
        ({"use_dora": True, "finetuning_type": "full"}, "finetuning_type: full has none"),
        ({"use_dora": True, "quantization_bit": 8}, "quantization_bit: 4"),
    ],
)
def test_what_does_not_go_together(tiny_config, tmp_path, keys, part) -> None:
    with pytest.raises(UserError, match=part):
        tiny_config(**{"stage": "sft", "output_dir": tmp_path / "out", **keys})
