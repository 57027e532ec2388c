"""Flags of a widely copied script, PPO over four GPT-2 models, which files and command lines may use as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.config.stages import is_online

SCRIPT: Mapping[str, Any] = {
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
"""The script's flags with their defaults."""

IMPLIED: Mapping[str, Any] = {
    "stage": "ppo",
    "finetuning_type": "full",
    "critic": "model",
    "prompt_template": "[CLS]{prompt}[SEP]",
    "cut_prompts": True,
    "truncation_side": "right",
    "top_k": 50,
    "ppo_target": 0,
    "value_coef": 1.0,
    "clip_grad_per_role": True,
    "lr_scheduler_type": "constant",
}
"""What the script does without a flag for it, in our keys."""

ALIASES: Mapping[str, str] = {
    "train_file_path": "dataset",
    "ori_model_path": "model_name_or_path",
    "model_path": "model_name_or_path",
    "reward_model_path": "reward_model",
    "query_len": "max_new_tokens",
    "update_timesteps": "ppo_buffer_size",
    "ppo_epoch": "ppo_epochs",
    "policy_clip_eps": "clip_range",
    "value_clip_eps": "clip_range_value",
    "reward_clip_eps": "reward_clip",
    "lam": "gae_lambda",
}
"""Flags that are a key of ours under another name."""

COUNTED = ("max_len", "batch_size", "num_episodes", "max_timesteps", "update_timesteps", "device")
"""Flags whose values are counted into keys of ours."""

FLAGS = frozenset({*ALIASES, *COUNTED}) - {"batch_size"}
"""Names that are no keys here. ``batch_size`` is one of LLaMA-Factory's, which counts rows of an evaluation."""

MARKS = frozenset({"query_len", "update_timesteps", "max_timesteps", "ori_model_path", "policy_clip_eps"})
"""Any of these says that a command line is that script's."""

SPECIAL = 3
"""Tokens that the script keeps of ``max_len``, beside the question's, when it cuts a text."""

_STEPS = ("num_episodes", "max_timesteps", "update_timesteps")


class FlagError(ValueError):
    """A flag whose value cannot be counted with; ``flag`` is its name, the text completes "`flag` ..."."""

    def __init__(self, flag: str, sentence: str) -> None:
        super().__init__(sentence)
        self.flag = flag


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One key that flags stand for.

    Attributes:
        key, value: ours. flag: the one that is named where the value is wrong. note: how the value came about.
    """

    key: str
    value: Any
    flag: str
    note: str


def is_of_the_script(flags: Mapping[str, Any]) -> bool:
    """Whether these are flags of the script, so that what is not among them has the script's defaults."""
    return bool(MARKS & flags.keys()) or {"max_len", "train_file_path"} <= flags.keys()


def readings(flags: Mapping[str, Any], *, trains: bool) -> tuple[list[Reading], list[str]]:
    """What the script's flags among these keys are here, and sentences about those that are nothing here.

    Args:
        flags: keys as they were written, ours among them; lengths and counts are taken from either.
        trains: whether a run is configured; else a model is used, and batches are those of generation.

    Raises:
        FlagError: a count is no whole number, or lengths leave nothing for a prompt.
    """
    samples = not trains or is_online(str(flags.get("stage", "sft")))
    found = [
        Reading(key=key, value=flags[flag], flag=flag, note=f"was {flag}")
        for flag, key in ALIASES.items()
        if flag in flags
    ]
    if "max_len" in flags:
        found += _lengths(flags, samples)
    if "batch_size" in flags and trains:
        found.append(_batch(flags, samples))
    if samples and trains and any(flag in flags for flag in _STEPS):
        found += _steps(flags)
    notes = []
    if trains and not samples:
        idle = [flag for flag in ("num_episodes", "max_timesteps") if flag in flags]
        notes += [f"`{flag}` is ignored: only stages that sample count episodes" for flag in idle]
    if "device" in flags:
        of_device, note = _device(flags["device"])
        found += of_device
        notes += [note] if note else []
    return found, notes


def whole(value: Any, flag: str) -> int:
    """A number of steps, rows or tokens.

    Raises:
        FlagError: it is none.
    """
    try:
        return int(str(value))
    except ValueError:
        raise FlagError(flag, f"must be a whole number, not {value!r}") from None


def _number(flags: Mapping[str, Any], flag: str, *, least: int = 1) -> int:
    """A count under the script's name, else under ours, else the script's default."""
    ours = ALIASES.get(flag, flag)
    value = flags.get(flag, flags.get(ours, SCRIPT[flag]))
    number = whole(value, flag)
    if number < least:
        raise FlagError(flag, f"must be at least {least}, not {number}")
    return number


def _lengths(flags: Mapping[str, Any], samples: bool) -> list[Reading]:
    longest = _number(flags, "max_len")
    if not samples:
        return [Reading(key="cutoff_len", value=longest, flag="max_len", note="was max_len: text and question")]
    question = _number(flags, "query_len")
    prompt = longest - question - SPECIAL
    if prompt < 4:
        raise FlagError("max_len", f"of {longest} leaves {prompt} tokens for a text beside a query_len of {question}")
    how = f"of the prompt: max_len - query_len - {SPECIAL}, [CLS] and [SEP] included"
    return [
        Reading(key="cutoff_len", value=prompt, flag="max_len", note=how),
        Reading(key="cut_prompts", value=True, flag="max_len", note="longer texts are cut there, not left out"),
    ]


def _batch(flags: Mapping[str, Any], samples: bool) -> Reading:
    rows = _number(flags, "batch_size")
    note = "was batch_size"
    if samples:
        rows *= _number(flags, "num_return_sequences")
        note = "completions: batch_size x num_return_sequences"
    return Reading(key="per_device_train_batch_size", value=rows, flag="batch_size", note=note)


def _steps(flags: Mapping[str, Any]) -> list[Reading]:
    episodes, timesteps, gathered = (_number(flags, flag) for flag in _STEPS)
    named = next(flag for flag in _STEPS if flag in flags)
    reading: Callable[..., Reading] = Reading
    found = [
        reading(
            key="max_steps",
            value=max(1, episodes * timesteps // gathered),
            flag=named,
            note="iterations: num_episodes x max_timesteps / update_timesteps",
        )
    ]
    if "update_timesteps" not in flags and "ppo_buffer_size" not in flags:
        found.append(reading(key="ppo_buffer_size", value=gathered, flag=named, note="the script's update_timesteps"))
    if str(flags.get("save_strategy", "steps")) == "steps":
        every = max(1, timesteps // gathered)
        note = "iterations of an episode, at whose end the script saves"
        found.append(reading(key="save_steps", value=every, flag=named, note=note))
    return found


def _device(value: Any) -> tuple[list[Reading], str]:
    first = str(value).split(",")[0].strip()
    if first.startswith("-"):
        return [Reading(key="device_map", value="cpu", flag="device", note="was device: -1")], ""
    return [], (
        f"`device: {value}`: the GPU is used where there is one; start with CUDA_VISIBLE_DEVICES={value} to choose it, "
        "or empty for the CPU"
    )
