"""Every algorithm through the command line: it trains, its adapter loads with peft, a second call finds it finished."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from posttrain.cli import main

ONLINE = {
    "rloo": {},
    "grpo": {"num_return_sequences": 4},
    "grpo as Dr. GRPO": {"num_return_sequences": 4, "scale_rewards": "none", "loss_average": "budget"},
    "grpo as DAPO": {
        **{"num_return_sequences": 4, "loss_average": "token", "clip_range_high": 0.28, "kl_coef": 0.0},
        **{"dynamic_sampling": True, "ppo_buffer_size": 2},
    },
    "grpo as GSPO": {
        "num_return_sequences": 4,
        "importance_sampling_level": "sequence",
        "clip_range": 3e-4,
        "clip_range_high": 4e-4,
    },
    "grpo as CISPO": {"num_return_sequences": 4, "policy_loss": "cispo", "loss_average": "token"},
    "reinforce": {},
    "reinforce with groups": {
        **{"num_return_sequences": 2, "reinforce_baseline": "group", "kl_in": "loss", "kl_estimator": "k2"},
    },
    "remax": {},
    "online_dpo": {},
    "online_dpo of four": {"num_return_sequences": 4, "pref_loss": "ipo"},
    "rejection": {},
    "ppo with more": {
        **{"dual_clip": 3.0, "clip_range_high": 0.3, "value_learning_rate": 1e-2, "critic_warmup_steps": 1},
        **{"ptx_coef": 0.5, "ptx_batch_size": 2, "num_return_sequences": 2},
    },
}
OFFLINE = {
    **{
        f"dpo with {loss}": {"pref_loss": loss}
        for loss in ("sigmoid", "hinge", "ipo", "robust", "apo_zero", "orpo", "cpo", "simpo")
    },
    "dpo smoothed, with SFT": {"dpo_label_smoothing": 0.1, "pref_ftx": 0.5},
    "kto": {"kto_rejected_weight": 1.5},
}


def run(folder, values, *overrides):
    """Exit status of ``posttrain train``, and what the run reports."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    status = main(["train", str(path), *overrides])
    results = folder / "out" / "all_results.json"
    return status, json.loads(results.read_text("utf-8")) if results.exists() else {}


def values_of(config, **keys):
    """The flat keys of a resolved configuration that the tests vary."""
    wanted = ("stage", "model_name_or_path", "output_dir", "cutoff_len", "per_device_train_batch_size", "lora_rank")
    more = ("learning_rate", "logging_steps", "max_new_tokens", "seed", "disable_tqdm")
    flat = config.to_flat()
    return {key: flat[key] for key in wanted + more} | {"dataset": ",".join(config.data.dataset)} | keys


@pytest.mark.parametrize("name", ONLINE)
def test_an_online_stage(name, tiny_config, tiny_data, tiny_llama, trained, tmp_path, capsys) -> None:
    stage = name.split()[0]
    keys = {"reward_model": str(trained / "rm"), "max_steps": 2, "save_strategy": "no", **ONLINE[name]}
    if "ptx_coef" in keys:
        keys["ptx_dataset"] = str(tiny_data / "text.jsonl")
    config = tiny_config(stage, tmp_path / "out", **keys)
    status, results = run(tmp_path, values_of(config, **keys))
    assert status == 0, capsys.readouterr().err
    assert results["total_steps"] == 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "trainer_log.jsonl").read_text("utf-8").splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert ("ptx_loss" in lines[-1]) == ("ptx_coef" in keys)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "out")


@pytest.mark.parametrize("name", OFFLINE)
def test_an_offline_stage(name, tiny_config, tiny_llama, tmp_path, capsys) -> None:
    stage = name.split()[0]
    keys = {"max_steps": 3, "save_strategy": "no", "val_size": 4, **OFFLINE[name]}
    config = tiny_config(stage, tmp_path / "out", **keys)
    status, results = run(tmp_path, values_of(config, **keys))
    assert status == 0, capsys.readouterr().err
    assert results["total_steps"] == 3
    assert 0 <= results["eval_rewards/accuracies"] <= 1
    assert math.isfinite(results["eval_loss"])
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "out")


@pytest.mark.parametrize("stage", ["dpo", "kto", "grpo"])
def test_all_weights_train_without_a_second_policy_in_memory(stage, tiny_config, tmp_path, capsys) -> None:
    """Of an offline stage: the reference has spoken before training began."""
    keys = {"finetuning_type": "full", "max_steps": 2, "save_strategy": "no"}
    keys |= {"reward_funcs": "length:2-6", "num_return_sequences": 4} if stage == "grpo" else {}
    config = tiny_config(stage, tmp_path / "out", **keys)
    status, _ = run(tmp_path, values_of(config, **keys))
    assert status == 0, capsys.readouterr().err
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_reward_model_from_rankings_of_several_answers(tiny_config, tmp_path, capsys) -> None:
    rows = [
        {"prompt": f"name a fruit like {fruit}", "ranked": [f"{fruit}!", fruit, f"no {fruit}", "no"][:size]}
        for fruit, size in (("fig", 4), ("plum", 3), ("pear", 4), ("lime", 2), ("kiwi", 3), ("date", 4))
    ]
    (tmp_path / "rankings.json").write_text(json.dumps(rows), encoding="utf-8")
    keys = {"max_steps": 3, "save_strategy": "no", "val_size": 2, "max_tokens_per_microbatch": 1}
    config = tiny_config("rm", tmp_path / "out", **keys)
    values = values_of(config, **keys) | {"dataset": str(tmp_path / "rankings.json")}
    status, results = run(tmp_path, values)
    assert status == 0, capsys.readouterr().err
    one_by_one = results["train_loss"]
    path = tmp_path / "whole"
    path.mkdir()
    status, results = run(path, values | {"output_dir": str(path / "out"), "max_tokens_per_microbatch": 4096})
    assert status == 0
    assert results["train_loss"] == pytest.approx(one_by_one, rel=1e-5)
