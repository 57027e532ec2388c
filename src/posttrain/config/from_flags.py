"""Command lines of training scripts: PPO over four GPT-2 models, and scripts whose flags have names that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.convert import Converted, flags_of, whole
from posttrain.config.renamed import ELSEWHERE
from posttrain.config.run import KEYS

_SCRIPT: Mapping[str, Any] = {
    "train_file_path": "data/ppo_train.json",
    "ori_model_path": "sft_model/",
    "reward_model_path": "rm_model/",
    "max_len": 768,
    "query_len": 64,
    "batch_size": 16,
    "num_episodes": 3,
    "max_timesteps": 80,
    "update_timesteps": 20,
    "kl_coef": 0.02,
    "ppo_epoch": 2,
    "policy_clip_eps": 0.2,
    "value_clip_eps": 0.2,
    "top_p": 1.0,
    "repetition_penalty": 1.4,
    "do_sample": True,
    "num_return_sequences": 1,
    "max_grad_norm": 1.0,
    "reward_clip_eps": 5.0,
    "gamma": 1.0,
    "lam": 0.95,
    "learning_rate": 1e-5,
    "adam_epsilon": 1e-5,
    "output_dir": "output_dir",
    "seed": 2048,
}
"""The PPO script's flags with their defaults."""

_MARKS = frozenset({"query_len", "update_timesteps", "ori_model_path", "policy_clip_eps", "max_timesteps"})

# Flag -> our key, "" where it is the same.
_PLAIN: Mapping[str, str] = {
    "train_file_path": "dataset",
    "ori_model_path": "model_name_or_path",
    "reward_model_path": "reward_model",
    "ppo_epoch": "ppo_epochs",
    "policy_clip_eps": "clip_range",
    "value_clip_eps": "clip_range_value",
    "reward_clip_eps": "reward_clip",
    "lam": "gae_lambda",
    **dict.fromkeys(("kl_coef", "top_p", "repetition_penalty", "do_sample", "num_return_sequences"), ""),
    **dict.fromkeys(("max_grad_norm", "gamma", "learning_rate", "adam_epsilon", "output_dir", "seed"), ""),
}

# Flags of scripts that mean one thing wherever they stand.
_SAME: Mapping[str, str] = {
    **{"batch_size": "per_device_train_batch_size", "batch_size_per_device": "per_device_train_batch_size"},
    **{"micro_batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs", "lr": "learning_rate"},
    **{"model": "model_name_or_path", "model_path": "model_name_or_path", "train_dataset": "dataset"},
    **{"train_file_path": "dataset", "max_seq_length": "cutoff_len", "max_seq_len": "cutoff_len"},
    **{"block_size": "cutoff_len", "max_len": "cutoff_len", "lora_r": "lora_rank", "target_modules": "lora_target"},
    **{"lora_target_modules": "lora_target", "max_completion_length": "max_new_tokens"},
    **{"num_generations": "num_return_sequences", "reward_model_path": "reward_model"},
    **{"num_ppo_epochs": "ppo_epochs", "ppo_epoch": "ppo_epochs", "lam": "gae_lambda", "vf_coef": "value_coef"},
    **{"cliprange": "clip_range", "cliprange_value": "clip_range_value", "whiten_rewards": "ppo_whiten_rewards"},
    **{"label_smoothing": "dpo_label_smoothing", "horizon": "kl_horizon", "init_kl_coef": "kl_coef"},
}

_WHOLE = (
    *("max_len", "query_len", "batch_size", "num_return_sequences"),
    *("num_episodes", "max_timesteps", "update_timesteps"),
)

# The script keeps 3 tokens of max_len for [CLS] and [SEP] around the text.
_SPECIAL = 3


def from_flags(words: Sequence[str]) -> Converted:
    """A script and its flags.

    Raises:
        UserError: a word belongs to no flag, or lengths leave nothing for a prompt.
    """
    flags = flags_of(words[1:])
    if _MARKS & flags.keys() or {"max_len", "train_file_path"} <= flags.keys():
        return _ppo(words[0], flags)
    found = Converted(origin=f"{words[0]} and its flags")
    for key, value in flags.items():
        _take(found, key, value)
    return found


def _take(found: Converted, key: str, value: Any) -> None:
    """A flag whose name is one of ours, or means the same in every script; others are not guessed."""
    if key in KEYS and key != "batch_size":
        found.take(key, value)
    elif key in _SAME:
        found.take(_SAME[key], value)
        if _SAME[key] in found.values:
            found.notes[_SAME[key]] = f"was {key}"
    elif key in ELSEWHERE:
        found.lose(key, value, f"it may mean something else than `{ELSEWHERE[key]}`; set that if it does not")
    else:
        found.take(key, value)


def _ppo(script: str, flags: Mapping[str, Any]) -> Converted:
    """The script that gathers ``update_timesteps`` batches and then trains on each of them, ``ppo_epoch`` times."""
    found = Converted(origin=f"{script} and its flags")
    values = {**_SCRIPT, **{key: value for key, value in flags.items() if key in _SCRIPT}}
    for key, value in {"stage": "ppo", "finetuning_type": "full", "critic": "model", "template": "empty"}.items():
        found.set(key, value, {"critic": "a model of its own, started from the reward's"}.get(key, ""))
    for flag, name in _PLAIN.items():
        note = f"was {flag}" if name else ""
        found.set(name or flag, values[flag], note if flag in flags else (note or "the script's default"))
    count = {key: whole(values[key], key) for key in _WHOLE}
    prompt = count["max_len"] - count["query_len"] - _SPECIAL
    found.set("cutoff_len", prompt, f"of the prompt: max_len - query_len - {_SPECIAL} for [CLS] and [SEP]")
    found.set("max_new_tokens", values["query_len"], "was query_len")
    rows = count["batch_size"] * count["num_return_sequences"]
    found.set("per_device_train_batch_size", rows, "completions: batch_size x num_return_sequences")
    found.set("ppo_buffer_size", values["update_timesteps"], "was update_timesteps: batches gathered before an update")
    updates = max(1, count["num_episodes"] * count["max_timesteps"] // max(1, count["update_timesteps"]))
    found.set("max_steps", updates, "iterations: num_episodes x max_timesteps / update_timesteps")
    every = max(1, count["max_timesteps"] // max(1, count["update_timesteps"]))
    found.set("save_steps", every, "iterations of an episode, at whose end the script saves")
    found.set("ppo_target", 0, "the coefficient stays as it is")
    found.set("value_coef", 1.0, "the critic's loss has a backward pass of its own there")
    found.set("clip_grad_per_role", True, "actor and critic are clipped apart there")
    found.set("lr_scheduler_type", "constant")
    for key, value in flags.items():
        if key == "device":
            found.lose(key, value, f"start with CUDA_VISIBLE_DEVICES={value}, or empty for the CPU")
        elif key not in _SCRIPT:
            _take(found, key, value)
    return found
