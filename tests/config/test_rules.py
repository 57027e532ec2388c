"""Keys that cannot work together, and keys that work but look unintended."""

import pytest

from posttrain.config import load_config
from posttrain.errors import UserError

SFT = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o"}
PPO = {**SFT, "stage": "ppo", "reward_model": "r"}


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({**SFT, "stage": "ppo"}, "`reward_model` is missing"),
        ({**PPO, "finetuning_type": "full", "critic": "adapter"}, "a critic of its own is then `critic: model`"),
        ({**PPO, "critic": "model"}, "a critic of its own is then `critic: adapter`"),
        ({**PPO, "lora_dropout": 0.1}, "`lora_dropout` must be 0"),
        ({**PPO, "neat_packing": True}, "`neat_packing` is for stage pt;"),
        ({**SFT, "stage": "rm", "packing": True}, "`packing` is for stage pt;"),
        ({**SFT, "stage": "pt", "train_on_prompt": True}, "`train_on_prompt` is for stage sft"),
        ({**SFT, "stage": "rm", "mask_history": True}, "`mask_history` is for stage sft"),
        ({**SFT, "stage": "rm", "text_column": "t"}, "`text_column` is for stages pt and sft"),
        ({**SFT, "train_on_prompt": True, "mask_history": True}, "contradict each other"),
        ({**SFT, "neat_packing": True, "packing": False}, "contradicts `neat_packing: true`"),
        ({**SFT, "val_size": 0.1, "eval_dataset": "e"}, "keep one"),
        ({**SFT, "val_size": 1.5}, "a share below 1 or a whole number"),
        ({**SFT, "adapter_name_or_path": "a", "finetuning_type": "full"}, "posttrain export"),
        ({**SFT, "finetuning_type": "freeze", "freeze_trainable_layers": 0}, "would train no layer"),
        ({**SFT, "lora_target": []}, "`lora_target` is empty"),
        ({**SFT, "eval_strategy": "steps"}, "has no rows to evaluate on"),
        ({**SFT, "do_train": True, "do_eval": True}, "`do_eval` has no rows"),
        ({**SFT, "do_train": False}, "posttrain eval"),
        ({**SFT, "do_eval": True, "val_size": 2}, "posttrain generate"),
        ({**SFT, "load_best_model_at_end": True}, "compares evaluations"),
        ({**SFT, "early_stopping_steps": 2}, "compares evaluations"),
        (
            {**SFT, "val_size": 2, "eval_strategy": "epoch", "load_best_model_at_end": True},
            "set `save_strategy: epoch`",
        ),
        (
            {**SFT, "val_size": 2, "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True},
            "multiple of `eval_steps` (3)",
        ),
        ({**SFT, "bf16": True, "fp16": True}, "exclude each other"),
        ({**SFT, "gradient_checkpointing": True, "disable_gradient_checkpointing": True}, "contradict"),
        ({**SFT, "min_new_tokens": 9, "max_new_tokens": 8}, "is more than `max_new_tokens: 8`"),
        ({**SFT, "max_steps": 0}, "would train nothing"),
    ],
)
def test_what_cannot_work_is_refused(config, part):
    with pytest.raises(UserError) as caught:
        load_config(config)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {**SFT, "val_size": 20, "eval_strategy": "steps", "eval_steps": 50, "load_best_model_at_end": True},
        {**SFT, "do_train": True, "do_eval": True, "eval_dataset": "e"},
        {**SFT, "finetuning_type": "freeze", "freeze_trainable_layers": -2},
        {**PPO, "eval_strategy": "steps", "val_size": 0.1},
        {**SFT, "stage": "pt", "neat_packing": True, "text_column": "text"},
        {**SFT, "stage": "pt", "packing": True, "group_by_length": True},
        {**SFT, "packing": False, "neat_packing": False, "group_by_length": True},
        {**SFT, "stage": "rm", "group_by_length": True},
        {**PPO, "packing": False, "group_by_length": False},
        {**PPO, "finetuning_type": "full", "critic": "model", "reward_model_type": "full"},
        {**PPO, "finetuning_type": "freeze", "clip_grad_per_role": True},
    ],
)
def test_what_works_passes_without_a_word(config):
    assert load_config(config).warnings == ()


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({**SFT, "kl_coef": 0.1, "ppo_epochs": 2}, "`ppo_epochs`, `kl_coef` concern stages that sample"),
        ({**SFT, "center_rewards_coef": 0.1}, "`center_rewards_coef` concerns stage rm"),
        ({**PPO, "top_p": 0.9, "repetition_penalty": 1.1}, "top_p 0.9, repetition_penalty 1.1"),
        ({**PPO, "do_sample": False}, "nothing to explore"),
        ({**SFT, "packing": True}, "`packing: true` changes nothing in stage sft"),
        ({**SFT, "neat_packing": True}, "`neat_packing: true` changes nothing in stage sft"),
        ({**SFT, "packing": True, "neat_packing": True}, "`neat_packing: true` changes nothing in stage sft"),
        ({**SFT, "packing": True}, "`per_device_train_batch_size` counts rows"),
        ({**PPO, "group_by_length": True}, "`group_by_length: true` changes nothing in stage ppo"),
        ({**SFT, "warmup_steps": 5, "warmup_ratio": 0.1}, "`warmup_steps` wins"),
        ({**SFT, "save_only_model": True}, "cannot be continued"),
        ({**SFT, "export_legacy_format": True}, "safetensors"),
    ],
)
def test_what_may_surprise_is_said(config, part):
    warnings = load_config(config).warnings
    assert len(warnings) == 1
    assert part in warnings[0]


def test_keys_of_another_stage_at_their_default_are_not_mentioned():
    assert load_config({**SFT, "kl_coef": 0.2, "ppo_epochs": 4}).warnings == ()


SAMPLING = {**PPO, "reward_model": "r"}
PAIRS = {**SFT, "stage": "dpo"}


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({**SAMPLING, "stage": "grpo", "num_return_sequences": 1}, "leaves stage grpo nothing to compare"),
        (
            {**SAMPLING, "stage": "reinforce", "reinforce_baseline": "group"},
            "leaves stage reinforce nothing to compare",
        ),
        ({**SAMPLING, "dynamic_sampling": True}, "set num_return_sequences to 2 or more"),
        ({**SAMPLING, "stage": "rloo", "lora_dropout": 0.1}, "must be 0 in stage rloo"),
        ({**SAMPLING, "stage": "remax", "reward_part_norm": "batch"}, "on two scales"),
        ({**SAMPLING, "kl_in": "loss", "ppo_target": 3.0}, "steers the KL penalty in the reward"),
        ({**PAIRS, "pref_loss": "hinge", "dpo_label_smoothing": 0.1}, "does not go with pref_loss: hinge"),
        ({**PAIRS, "pref_loss": "exo_pair"}, "needs dpo_label_smoothing above 0"),
        ({**SAMPLING, "stage": "online_dpo", "pref_loss": "simpo"}, "is for stage dpo"),
    ],
)
def test_what_cannot_work_among_the_algorithms_is_refused(config, part):
    with pytest.raises(UserError) as refusal:
        load_config(config)
    assert part in " ".join(str(refusal.value).split())


def test_the_target_of_ppo_goes_where_the_loss_charges_for_kl():
    assert load_config({**PPO, "kl_in": "loss"}).online.ppo_target is None
    assert load_config(PPO).online.ppo_target == 6.0


def test_no_target_keeps_the_coefficient_fixed():
    assert load_config({**PPO, "ppo_target": None}).online.ppo_target is None
    assert load_config({**PPO, "ppo_target": 0}).online.ppo_target == 0


def test_cpo_imitates_by_default_and_the_others_do_not():
    assert load_config({**PAIRS, "pref_loss": "cpo"}).preference.pref_ftx == 1.0
    assert load_config({**PAIRS, "pref_loss": "cpo", "pref_ftx": 0.2}).preference.pref_ftx == 0.2
    assert load_config(PAIRS).preference.pref_ftx == 0.0


def test_a_beta_of_dpo_under_simpo_is_pointed_out():
    (warning,) = load_config({**PAIRS, "pref_loss": "simpo"}).warnings
    assert "usually takes 2 to 10" in warning
