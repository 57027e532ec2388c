"""Command lines of training scripts: PPO over four GPT-2 models, and scripts whose flags have names that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.config.convert import Converted, flags_of
from posttrain.config.renamed import ELSEWHERE
from posttrain.config.run import KEYS
from posttrain.config.script import ALIASES, IMPLIED, SCRIPT, FlagError, is_of_the_script, readings
from posttrain.errors import UserError

# Flags of scripts that mean one thing wherever they stand.
_SAME: Mapping[str, str] = {
    **{"batch_size": "per_device_train_batch_size", "batch_size_per_device": "per_device_train_batch_size"},
    **{"micro_batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs", "lr": "learning_rate"},
    **{"model": "model_name_or_path", "train_dataset": "dataset"},
    **{"max_seq_length": "cutoff_len", "max_seq_len": "cutoff_len"},
    **{"block_size": "cutoff_len", "max_len": "cutoff_len", "lora_r": "lora_rank", "target_modules": "lora_target"},
    **{"lora_target_modules": "lora_target", "max_completion_length": "max_new_tokens"},
    **{"num_generations": "num_return_sequences"},
    **{"num_ppo_epochs": "ppo_epochs", "vf_coef": "value_coef"},
    **{"cliprange": "clip_range", "cliprange_value": "clip_range_value", "whiten_rewards": "ppo_whiten_rewards"},
    **{"label_smoothing": "dpo_label_smoothing", "horizon": "kl_horizon", "init_kl_coef": "kl_coef"},
}

_WHY: Mapping[str, str] = {
    "critic": "a model of its own, started from the reward's",
    "prompt_template": "how its tokenizer encodes a text",
    "cut_prompts": "texts that are too long are cut",
    "top_k": "transformers' own default at its time",
    "ppo_target": "the coefficient stays as it is",
    "value_coef": "the critic's loss has a backward pass of its own there",
    "clip_grad_per_role": "actor and critic are clipped apart there",
}


def from_flags(words: Sequence[str]) -> Converted:
    """A script and its flags.

    Raises:
        UserError: a word belongs to no flag, or lengths leave nothing for a prompt.
    """
    flags = flags_of(words[1:])
    if is_of_the_script(flags):
        return _ppo(words[0], flags)
    found = Converted(origin=f"{words[0]} and its flags")
    for key, value in flags.items():
        _take(found, key, value)
    return found


def _take(found: Converted, key: str, value: Any) -> None:
    """A flag whose name is one of ours, or means the same in every script; others are not guessed."""
    if key in KEYS and key != "batch_size":
        found.take(key, value)
    elif key in _SAME or key in ALIASES:
        name = _SAME.get(key) or ALIASES[key]
        found.take(name, value)
        if name in found.values:
            found.notes[name] = f"was {key}"
    elif key in ELSEWHERE:
        found.lose(key, value, f"it may mean something else than `{ELSEWHERE[key]}`; set that if it does not")
    else:
        found.take(key, value)


def _ppo(script: str, flags: Mapping[str, Any]) -> Converted:
    """The script that gathers ``update_timesteps`` batches and then trains on each of them, ``ppo_epoch`` times."""
    found = Converted(origin=f"{script} and its flags")
    values = {**SCRIPT, **{key: value for key, value in flags.items() if key in SCRIPT}}
    for key, value in IMPLIED.items():
        found.set(key, value, _WHY.get(key, ""))
    for flag, value in values.items():
        if flag in KEYS and flag != "batch_size":
            found.set(flag, value, "" if flag in flags else "the script's default")
    try:
        counted, _ = readings({**values, **_kept_strategy(flags), "stage": "ppo"}, trains=True)
    except FlagError as error:
        raise UserError(f"config convert: `{error.flag}` {error}.") from None
    for item in counted:
        found.set(item.key, item.value, item.note)
    for key, value in flags.items():
        if key == "device":
            found.lose(key, value, f"start with CUDA_VISIBLE_DEVICES={value}, or empty for the CPU")
        elif key not in SCRIPT:
            _take(found, key, value)
    return found


def _kept_strategy(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {"save_strategy": flags["save_strategy"]} if "save_strategy" in flags else {}
