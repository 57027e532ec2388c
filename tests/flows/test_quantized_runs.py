"""Every stage over a 4-bit or 8-bit base by the real bitsandbytes on the CPU, and what is done with its result."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel

from posttrain.config import load_config
from posttrain.errors import UserError
from posttrain.models.adapter_files import read_adapter
from posttrain.models.lineage import fingerprint, read_lineage
from posttrain.models.load import load_causal_lm
from posttrain.models.quantize import is_quantized
from posttrain.models.roles import SharedRoles

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

from posttrain.models.assemble import offline_assembly, online_assembly
from posttrain.train.run import train
from posttrain.types import Role

IDS = torch.tensor([[9, 10, 11, 12, 13, 14, 20, 33]])


def results_of(folder):
    return json.loads((folder / "all_results.json").read_text("utf-8"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "kto"])
def test_an_offline_stage(tiny_config, tiny_llama, tmp_path, stage, bits) -> None:
    said = []
    config = tiny_config(stage, tmp_path / "out", quantization_bit=bits, max_steps=2, save_strategy="no")
    train(config, notify=said.append)
    assert any(f"kept in {bits} bits" in sentence for sentence in said)
    assert math.isfinite(results_of(tmp_path / "out")["train_loss"])
    assert read_lineage(tmp_path / "out").base.fingerprint == fingerprint(load_causal_lm(tiny_llama))
    assert (
        max(tensor.abs().max() for key, tensor in read_adapter(tmp_path / "out").state.items() if "lora_B" in key) > 0
    )
    loaded = PeftModel.from_pretrained(load_causal_lm(tiny_llama), tmp_path / "out")
    assert torch.isfinite(loaded(input_ids=IDS).logits).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("stage", ["ppo", "grpo", "online_dpo"])
def test_a_stage_that_samples_passes_its_gates(tiny_config, trained, tmp_path, stage, bits) -> None:
    # the gate is float32's own: the ratio between sampling and training is 1
    keys = {"num_return_sequences": 4} if stage == "grpo" else {}
    config = tiny_config(
        stage,
        tmp_path / "out",
        **{"reward_model": str(trained / "rm"), "adapter_name_or_path": str(trained / "sft")},
        **{"quantization_bit": bits, "max_steps": 2, "save_strategy": "no", **keys},
    )
    train(config)
    first = json.loads((tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()[0])
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert len(read_lineage(tmp_path / "out").parents) == 1
    assert math.isfinite(first.get("loss", 0.0))


@pytest.mark.parametrize("bits", [4, 8])
def test_roles_on_a_quantised_base_wear_what_elsewhere_is_folded(tiny_config, trained, tmp_path, bits) -> None:
    config = tiny_config(
        "ppo",
        tmp_path / "out",
        **{"reward_model": str(trained / "rm_on_sft"), "adapter_name_or_path": str(trained / "sft")},
        quantization_bit=bits,
    )
    roles = online_assembly(config).roles
    assert isinstance(roles, SharedRoles)
    assert is_quantized(roles.backbone)
    worn = {role: costume.wears for role, costume in roles.costumes.items()}
    assert worn[Role.REFERENCE] == ("shared0",)
    assert worn[Role.ACTOR] == ("shared0", "actor")
    assert worn[Role.REWARD] == ("shared0", "reward")
    trainable = {name for name, p in roles.named_parameters() if p.requires_grad}
    assert trainable == set(roles.parameters_of(Role.ACTOR)) | set(roles.parameters_of(Role.CRITIC))


def test_the_reference_says_what_base_and_parent_say(tiny_config, trained, tmp_path, make_batch, ragged_rows) -> None:
    batch = make_batch(ragged_rows(3, vocabulary=60))
    keys = {"adapter_name_or_path": str(trained / "sft"), "quantization_bit": 4}
    online = online_assembly(tiny_config("grpo", tmp_path / "a", reward_funcs="length:2-9", **keys))
    alone = offline_assembly(tiny_config("sft", tmp_path / "b", **keys))
    with torch.no_grad():
        reference = online.roles(batch, (Role.REFERENCE,)).logprobs
        continued = alone.roles(batch, (Role.ACTOR,)).logprobs
        actor = online.roles(batch, (Role.ACTOR,)).logprobs
    torch.testing.assert_close(reference, continued, atol=1e-5, rtol=1e-5)
    assert torch.equal(reference, actor)


def test_resumed_is_uninterrupted(tiny_config, tmp_path) -> None:
    keys = {"quantization_bit": 4, "num_train_epochs": 2, "save_steps": 3, "save_total_limit": None}
    train(tiny_config("sft", tmp_path / "whole", **keys))
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"))
    train(tiny_config("sft", tmp_path / "again", **keys, resume_from_checkpoint=str(checkpoints[0])))
    whole, again = (read_adapter(tmp_path / name).state for name in ("whole", "again"))
    assert all(torch.equal(tensor, again[key]) for key, tensor in whole.items())


def test_chat_evaluation_and_export_of_a_quantised_run(tiny_config, tiny_llama, tiny_data, trained, tmp_path) -> None:
    from posttrain.evaluate.run import evaluate
    from posttrain.models.export import export_model
    from posttrain.serve.model import ChatModel

    values = {
        "model_name_or_path": str(tiny_llama),
        "adapter_name_or_path": str(trained / "sft"),
        "quantization_bit": 4,
    }
    chat = ChatModel({**values, "max_new_tokens": 4, "do_sample": False})
    assert is_quantized(chat.model)
    assert len(chat.chat([{"role": "user", "content": "name a fruit"}])) == 1
    data = {"dataset": str(tiny_data / "chat.json"), "stage": "sft", "cutoff_len": 64}
    losses = []
    for bits in (4, None):
        out = tmp_path / f"eval{bits}"
        config = load_config({**values, **data, "quantization_bit": bits, "output_dir": str(out)}, command="eval")
        evaluate(config)
        losses.append(next(v for k, v in json.loads((out / "eval_results.json").read_text()).items() if "loss" in k))
    assert losses[0] != losses[1]
    assert abs(losses[0] - losses[1]) < 0.5
    said = []
    exported = export_model(load_config({**values, "export_dir": str(tmp_path / "m")}, command="export"), said.append)
    assert any("`quantization_bit: 4` is ignored by export" in sentence for sentence in said)
    merged = load_causal_lm(exported)
    wanted = PeftModel.from_pretrained(load_causal_lm(tiny_llama), trained / "sft")
    torch.testing.assert_close(merged(input_ids=IDS).logits, wanted(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)


def test_bits_of_a_reward_adapter_are_those_of_the_base(tiny_config, trained, tmp_path) -> None:
    keys = {"reward_model": str(trained / "rm"), "reward_model_quantization_bit": 4}
    with pytest.raises(UserError, match=r"reward_model_quantization_bit: 4 is for a reward model that is a whole"):
        online_assembly(tiny_config("ppo", tmp_path / "out", **keys))
