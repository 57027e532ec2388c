"""Command lines of training scripts: PPO over four GPT-2 models, and scripts whose flags have names that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.convert import Converted, flags_of
from posttrain.config.renamed import ELSEWHERE, RENAMED
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
        name = key if key in KEYS or key in RENAMED else ELSEWHERE.get(key, key)
        found.take(name, value)
        if name != key and name in found.values:
            found.notes[name] = f"was {key}"
    return found


def _ppo(script: str, flags: Mapping[str, Any]) -> Converted:
    """The script that gathers ``update_timesteps`` batches and then trains on each of them, ``ppo_epoch`` times."""
    found = Converted(origin=f"{script} and its flags")
    values = {**_SCRIPT, **{key: value for key, value in flags.items() if key in _SCRIPT}}
    for key, value in {"stage": "ppo", "finetuning_type": "full", "critic": "model", "template": "empty"}.items():
        found.set(key, value, {"critic": "a model of its own, started from the reward's"}.get(key, ""))
    for flag, name in _PLAIN.items():
        note = f"was {flag}" if name else ""
        found.set(name or flag, values[flag], note if flag in flags else (note or "the script's default"))
    prompt = int(values["max_len"]) - int(values["query_len"]) - _SPECIAL
    found.set("cutoff_len", prompt, f"of the prompt: max_len - query_len - {_SPECIAL} for [CLS] and [SEP]")
    found.set("max_new_tokens", values["query_len"], "was query_len")
    rows = int(values["batch_size"]) * int(values["num_return_sequences"])
    found.set("per_device_train_batch_size", rows, "completions: batch_size x num_return_sequences")
    found.set("ppo_buffer_size", values["update_timesteps"], "was update_timesteps: batches gathered before an update")
    timesteps = int(values["num_episodes"]) * int(values["max_timesteps"])
    updates = max(1, timesteps // int(values["update_timesteps"]))
    found.set("max_steps", updates, "iterations: num_episodes x max_timesteps / update_timesteps")
    every = max(1, int(values["max_timesteps"]) // int(values["update_timesteps"]))
    found.set("save_steps", every, "iterations of an episode, at whose end the script saves")
    found.set("ppo_target", 0, "the coefficient stays as it is")
    found.set("value_coef", 1.0, "the critic's loss has a backward pass of its own there")
    found.set("clip_grad_per_role", True, "actor and critic are clipped apart there")
    found.set("lr_scheduler_type", "constant")
    for key, value in flags.items():
        if key == "device":
            found.lose(key, value, f"start with CUDA_VISIBLE_DEVICES={value}, or empty for the CPU")
        elif key not in _SCRIPT:
            found.take(ELSEWHERE.get(key, key), value)
    return found
