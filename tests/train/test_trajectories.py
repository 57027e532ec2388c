"""Whole runs that must end in the same weights: interrupted or not, cut small or large, checkpointed or not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import is_online
from posttrain.train import clocks
from posttrain.train import run as train_run
from posttrain.train.monitor import Monitor

CASES = {
    "sft": ("sft", {"lora_dropout": 0.1, "gradient_accumulation_steps": 1, "val_size": 2, "eval_steps": 2}),
    "sft full": ("sft", {"finetuning_type": "full", "weight_decay": 0.1}),
    "rm": ("rm", {"center_rewards_coef": 0.01, "lora_dropout": 0.1, "lr_scheduler_type": "cosine"}),
    "ppo": (
        "ppo",
        {
            **{"ppo_buffer_size": 2, "per_device_train_batch_size": 2, "ppo_score_norm": True, "ppo_target": 0.05},
            **{"kl_horizon": 20, "num_train_epochs": 2, "critic": "adapter", "num_return_sequences": 2},
        },
    ),
    "ppo value head": ("ppo", {"reward_clip": 1.0, "ppo_score_norm": True, "temperature": 0.9, "val_size": 2}),
    "dpo": ("dpo", {"pref_ftx": 0.1, "val_size": 2, "num_train_epochs": 2}),
    "kto": ("kto", {"kto_chosen_weight": 1.5, "val_size": 2, "num_train_epochs": 2, "max_samples": 10}),
    "grpo": ("grpo", {"num_return_sequences": 2, "dynamic_sampling": True, "ptx_coef": 0.5, "ptx_batch_size": 3}),
    "remax": ("remax", {"kl_in": "loss", "kl_estimator": "k2", "ppo_score_norm": True}),
    "ppo warm-up": ("ppo", {"critic_warmup_steps": 2, "ptx_coef": 1.0, "ptx_batch_size": 2, "weight_decay": 0.1}),
}
STREAMED = {"streaming": True, "buffer_size": 5, "max_steps": 5, "val_size": 2}
CASES |= {
    "pt streamed": ("pt", STREAMED),
    "sft streamed": ("sft", {**STREAMED, "gradient_accumulation_steps": 2, "lora_dropout": 0.1}),
    "rm streamed": ("rm", STREAMED),
    "dpo streamed": ("dpo", STREAMED),
    "kto streamed": ("kto", STREAMED),
    "grpo streamed": ("grpo", {**STREAMED, "num_return_sequences": 2, "dynamic_sampling": True}),
}


class StoppedError(Exception):
    """The power is cut."""


@pytest.fixture
def start(tiny_config, tiny_data, trained, monkeypatch):
    """Run a case into a folder; ``stop_after`` cuts the power right after that step's checkpoint."""

    def go(case, folder, stop_after=None, **more):
        stage, keys = CASES[case]
        if is_online(stage):
            keys = {"reward_model": str(trained / "rm"), **keys}
        if "ptx_coef" in keys:
            keys = {"ptx_dataset": str(tiny_data / "text.jsonl"), **keys}
        config = tiny_config(stage, folder, **{"save_steps": 1, "learning_rate": 5e-3, **keys, **more})
        if stop_after is None:
            return train_run.train(config)
        after = Monitor.after_step

        def cut(self, step, stats):
            after(self, step, stats)
            if step == stop_after:
                raise StoppedError

        with monkeypatch.context() as patch:
            patch.setattr(Monitor, "after_step", cut)
            with pytest.raises(StoppedError):
                train_run.train(config)
        return None

    return go


def weights(folder):
    folder = Path(folder)
    files = list(folder.glob("*.safetensors"))
    assert files
    return {f"{p.name}/{name}": tensor for p in files for name, tensor in load_file(p).items()}


def timeless(folder, name):
    path = Path(folder) / name
    if not path.exists():
        return []
    return [clocks.timeless(json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def assert_same_bits(one, two):
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted_bit_for_bit(start, tmp_path, case) -> None:
    """Weights, optimizer, adaptive KL, running reward statistics, buffers, the log and the completions."""
    results = start(case, tmp_path / "whole")
    start(case, tmp_path / "cut", stop_after=1)
    assert not (tmp_path / "cut" / "all_results.json").exists()
    again = start(case, tmp_path / "cut", resume_from_checkpoint=True)
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")
    last = f"checkpoint-{results['total_steps']}"
    assert results["total_steps"] >= 3
    assert_same_bits(tmp_path / "whole" / last, tmp_path / "cut" / last)
    states = [(tmp_path / run / last / "trainer_state.json").read_bytes() for run in ("whole", "cut")]
    assert states[0] == states[1]
    for name in ("trainer_log.jsonl", "completions.jsonl"):
        assert timeless(tmp_path / "whole", name) == timeless(tmp_path / "cut", name)
    assert again["train_tokens"] == results["train_tokens"]


def test_the_state_that_resumes_is_not_the_initial_one(start, tmp_path) -> None:
    """Else the comparison above would not notice if it were lost."""
    start("ppo", tmp_path / "cut", stop_after=1)
    state = json.loads((tmp_path / "cut" / "checkpoint-1" / "trainer_state.json").read_text("utf-8"))["algorithm_state"]
    assert state["reward_count"] == 4
    assert state["reward_m2"] > 0
    assert state["kl_coef"] != 0.2
    assert state["iterations"] == 1


@pytest.mark.parametrize("case", ["sft", "ppo value head"])
def test_what_was_logged_after_the_checkpoint_is_logged_anew(start, tmp_path, case) -> None:
    """Cut at step 3 with the last checkpoint at 2: the third step stands in the logs once."""
    start(case, tmp_path / "cut", save_steps=2, stop_after=3, num_train_epochs=2)
    start(case, tmp_path / "again", save_steps=2, num_train_epochs=2)
    assert [row["current_steps"] for row in timeless(tmp_path / "cut", "trainer_log.jsonl") if "loss" in row][-1] == 3
    start(case, tmp_path / "cut", save_steps=2, num_train_epochs=2, resume_from_checkpoint=True)
    for name in ("trainer_log.jsonl", "completions.jsonl"):
        assert timeless(tmp_path / "again", name) == timeless(tmp_path / "cut", name)


def test_an_interrupted_run_continues_unasked(start, tmp_path) -> None:
    start("rm", tmp_path / "whole")
    start("rm", tmp_path / "cut", stop_after=2)
    start("rm", tmp_path / "cut")
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_gives_the_same_bits(start, tmp_path, case) -> None:
    for name in ("one", "two"):
        start(case, tmp_path / name, save_strategy="no")
        torch.rand(5)  # the run does not lean on torch's own state
    assert_same_bits(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "kto", "grpo"])
def test_streamed_in_their_order_rows_train_as_when_all_are_read(tiny_config, trained, tmp_path, stage) -> None:
    keys = {"disable_shuffling": True, "max_steps": 3, "save_strategy": "no"}
    if stage == "pt":
        keys["per_device_train_batch_size"] = 2  # all steps within one epoch
    if is_online(stage):
        keys |= {"reward_model": str(trained / "rm"), "num_return_sequences": 2}
    for name in ("whole", "streamed"):
        train_run.train(tiny_config(stage, tmp_path / name, streaming=name == "streamed", **keys))
    assert_same_bits(tmp_path / "whole", tmp_path / "streamed")


def test_a_streamed_run_says_what_became_of_its_rows(tiny_config, tmp_path) -> None:
    said = []
    train_run.train(tiny_config("sft", tmp_path / "run", **STREAMED, save_strategy="no"), notify=said.append)
    assert any("read as they are needed, each drawn from 5" in sentence for sentence in said)
    assert any(re.match(r"read \d+ rows, kept \d+", sentence) for sentence in said)


def close(one, two, tolerance):
    first, second = weights(one), weights(two)
    for name, tensor in first.items():
        torch.testing.assert_close(
            second[name], tensor, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", ["sft", "sft full", "rm", "dpo", "kto"])
@pytest.mark.parametrize("variant", ["8x1", "tokens", "checkpointing"])
def test_how_the_work_is_cut_changes_nothing(start, tmp_path, case, variant) -> None:
    """1 x 8 = 8 x 1 = any token budget = recomputed activations; Adam's eps keeps rounding from being blown up."""
    dry = {"lora_dropout": 0.0, "adam_epsilon": 1e-3, "save_strategy": "no"}
    start(case, tmp_path / "one", **dry, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    changes = {
        "8x1": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        "tokens": {"per_device_train_batch_size": 8, "max_tokens_per_microbatch": 30},
        "checkpointing": {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    }[variant]
    start(case, tmp_path / "two", **dry, **{"gradient_accumulation_steps": 1, **changes})
    close(tmp_path / "one", tmp_path / "two", 2e-6)
    losses = [
        [row["loss"] for row in timeless(tmp_path / run, "trainer_log.jsonl") if "loss" in row]
        for run in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("case", ["ppo", "ppo value head"])
@pytest.mark.parametrize(
    "change", [{"max_tokens_per_microbatch": 40}, {"gradient_checkpointing": True}, {"num_rollout_slots": 2}]
)
def test_ppo_does_not_depend_on_the_cut_either(start, tmp_path, case, change) -> None:
    dry = {"adam_epsilon": 1e-3, "save_strategy": "no"}
    start(case, tmp_path / "one", **dry)
    start(case, tmp_path / "two", **dry, **change)
    close(tmp_path / "one", tmp_path / "two", 1e-5)
    texts = [[row["completion"] for row in timeless(tmp_path / run, "completions.jsonl")] for run in ("one", "two")]
    assert texts[0] == texts[1]


def test_an_unmerged_and_a_merged_start_are_the_same_run(tiny_config, trained, tmp_path) -> None:
    """PPO on base + adapter and on the merged model, the reward trained on the base: one trajectory."""
    for name, keys in {
        "adapter": {"adapter_name_or_path": str(trained / "sft")},
        "merged": {"model_name_or_path": str(trained / "merged")},
    }.items():
        config = tiny_config("ppo", tmp_path / name, reward_model=str(trained / "rm"), save_strategy="no", **keys)
        train_run.train(config)
    assert_same_bits(tmp_path / "adapter", tmp_path / "merged")
