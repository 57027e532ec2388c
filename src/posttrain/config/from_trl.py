"""Command lines and files of ``trl sft``, ``trl dpo`` and the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from posttrain.config import trl
from posttrain.config.convert import Converted, flags_of, whole
from posttrain.config.documents import read_document
from posttrain.config.method import PreferenceConfig
from posttrain.config.options import type_hints
from posttrain.config.run import KEYS
from posttrain.errors import UserError


def from_trl(words: Sequence[str]) -> Converted:
    """What follows ``trl``: the method, ``--config FILE``, and arguments that win over the file.

    Raises:
        UserError: the method is not known, or a file cannot be read.
    """
    method = words[0].replace("-", "_") if words else ""
    if method not in trl.METHODS:
        given = f"`{words[0]}` is not" if words else "name"
        raise UserError(f"config convert: {given} one of TRL's methods {', '.join(trl.METHODS)}.")
    flags = flags_of(words[1:])
    path = flags.pop("config", None)
    data: dict[str, Any] = {} if path is None else {str(k): v for k, v in read_document(str(path)).data.items()}
    data |= flags
    found = Converted(origin=f"trl {method}{f' --config {Path(str(path)).name}' if path else ''}")
    for ours, meaning in trl.METHODS[method].items():
        found.set(ours, meaning)
    adapts = bool(data.get("use_peft"))
    found.set("finetuning_type", "lora" if adapts else "full", f"use_peft: {str(adapts).lower()}")
    written = dict(data)
    defaults = {**trl.DEFAULTS[method], **(trl.LORA_DEFAULTS if adapts else {})}
    for key, value in defaults.items():
        data.setdefault(key, value)
    for key, value in sorted(data.items(), key=lambda item: item[0] in _DEPENDENT):
        _carry(found, method, key, value)
        ours = _target(method, key)
        if key not in written and ours in found.values:
            found.notes[ours] = f"TRL's default of {key}"
    if data.get("max_length", 0) is None:
        found.lose("max_length", None, f"rows without a limit; `cutoff_len` is {KEYS['cutoff_len'].default}, raise it")
    if adapts and "lora_target" not in found.values:
        why = "peft chooses layers by architecture, mostly q_proj and v_proj; here `lora_target: all`"
        found.lose("lora_target_modules", None, f"{why}; name the layers to keep peft's choice")
    full = ("assistant_only_loss", "completion_only_loss")
    if False in (data.get(key) for key in full) and True not in (data.get(key) for key in full):
        found.set("train_on_prompt", True, "prompts count, as they did there")
    if "output_dir" not in found.values:
        found.set("output_dir", f"runs/{method}", "none was given")
    if method == "ppo":
        found.set("ppo_target", None, "the coefficient stays as it is")
    return found


_DEPENDENT = ("steps_per_generation", "generation_batch_size", "total_episodes")


def _target(method: str, key: str) -> str:
    if key == "beta" and method in ("grpo", "rloo"):
        return "kl_coef"
    if key == "loss_type" and method == "grpo":
        return "loss_average"
    return trl.NAMES.get(key, key)


def _carry(found: Converted, method: str, key: str, value: Any) -> None:
    """One argument: by a reader of its own, by name, as nothing, or as transformers has it."""
    reader = _READERS.get(key)
    if value is None or key == "use_peft":
        return
    if reader is not None:
        reader(found, method, value)
    elif key in trl.LOST:
        if value is not False:
            found.lose(key, value, trl.LOST[key])
    elif key in trl.NAMES and trl.NAMES[key] in KEYS:
        found.set(_target(method, key), value, f"was {key}")
    elif key in trl.NAMES:
        found.take(trl.NAMES[key], value)
    else:
        found.take(key, value)


def _beta(found: Converted, method: str, value: Any) -> None:
    found.set(_target(method, "beta"), value, "was beta")


def _loss_type(found: Converted, method: str, value: Any) -> None:
    if not isinstance(value, str):
        found.lose("loss_type", value, "one loss, with `pref_ftx` as the second")
    elif method == "grpo" and value in trl.GRPO_AVERAGES:
        found.set("loss_average", trl.GRPO_AVERAGES[value], f"was loss_type: {value}")
    elif method == "sft" and value in ("nll", "chunked_nll", "dft"):
        if value == "dft":
            found.set("use_dft_loss", True, "was loss_type: dft")
    elif method in ("dpo", "online_dpo", "cpo") and value in _pref_losses():
        if method != "cpo" or value == "simpo":
            found.set("pref_loss", value, f"was loss_type: {value}")
        elif value != "sigmoid":
            found.lose("loss_type", value, "`pref_loss: cpo` has the sigmoid")
    elif not (method == "kto" and value == "kto"):
        found.lose("loss_type", value, f"stage {trl.METHODS[method]['stage']} does not have this loss")


def _pref_losses() -> tuple[str, ...]:
    return get_args(type_hints(PreferenceConfig)["pref_loss"])


def _max_length(found: Converted, method: str, value: Any) -> None:
    if method in trl.SAMPLING:
        if "cutoff_len" not in found.values and method == "online_dpo":
            found.set("cutoff_len", value, "was max_length, of prompt and completion")
        return
    found.set("cutoff_len", value, "was max_length")


def _max_prompt_length(found: Converted, method: str, value: Any) -> None:
    if method in trl.SAMPLING:
        found.set("cutoff_len", value, "was max_prompt_length: of the prompt alone")
    else:
        found.lose("max_prompt_length", value, "`cutoff_len` limits prompt and answer together")


def _max_completion_length(found: Converted, method: str, value: Any) -> None:
    if method in trl.SAMPLING:
        found.set("max_new_tokens", value, "was max_completion_length")
    else:
        found.lose("max_completion_length", value, "`cutoff_len` limits prompt and answer together")


def _scale_rewards(found: Converted, method: str, value: Any) -> None:
    meaning = {"true": "group", "false": "none"}.get(str(value).lower(), value)
    found.set("scale_rewards", meaning, "" if meaning == value else f"was {str(value).lower()}")


def _reward_clip_range(found: Converted, method: str, value: Any) -> None:
    ends = value if isinstance(value, list | tuple) else []
    if len(ends) == 2 and ends[0] == -ends[1]:
        found.set("reward_clip", ends[1], "was reward_clip_range")
    else:
        found.lose("reward_clip_range", value, "`reward_clip` is one number, for plus and minus")


def _answers_train(found: Converted, method: str, value: Any) -> None:
    """Both keys together decide, when all have been read."""


def _datasets(found: Converted, method: str, value: Any) -> None:
    parts = value if isinstance(value, list) else []
    paths = [part["path"] for part in parts if isinstance(part, Mapping) and "path" in part]
    if not paths:
        found.lose("datasets", value, "write their paths into `dataset`")
        return
    found.set("dataset", paths, "was datasets")
    for part in parts:
        more = {key: val for key, val in part.items() if key not in ("path",)}
        if more:
            found.lose(f"datasets, {part['path']}", more, "only the path is taken; `split` counts for all")


def _buffer(found: Converted, method: str, value: Any) -> None:
    """Micro-batches for one generation, as optimizer batches."""
    accumulation = int(found.values.get("gradient_accumulation_steps", 1))
    steps = whole(value, "steps_per_generation")
    if steps % accumulation:
        found.lose("steps_per_generation", value, "`ppo_buffer_size` counts whole optimizer batches")
    else:
        found.set("ppo_buffer_size", steps // accumulation, "was steps_per_generation")


def _generation_batch(found: Converted, method: str, value: Any) -> None:
    rows = found.values.get("per_device_train_batch_size", 8) * found.values.get("gradient_accumulation_steps", 1)
    size = whole(value, "generation_batch_size")
    if size % rows:
        found.lose("generation_batch_size", value, f"it is no multiple of the {rows} completions of an optimizer step")
    else:
        found.set("ppo_buffer_size", size // rows, "was generation_batch_size")


def _total_episodes(found: Converted, method: str, value: Any) -> None:
    rows = found.values.get("per_device_train_batch_size", 8) * found.values.get("gradient_accumulation_steps", 1)
    steps = max(1, whole(value, "total_episodes") // rows)
    found.set("max_steps", steps, f"was total_episodes: {value}, {rows} completions an iteration")


def _reward_funcs(found: Converted, method: str, value: Any) -> None:
    names = value if isinstance(value, list) else [value]
    written = [_function(str(name)) for name in names]
    found.set("reward_funcs", written, f"was {', '.join(map(str, names))}")
    if any(":" not in name for name in written):
        found.lose("reward_funcs", value, "a function of TRL's own has no file; write one (docs/rewards.md)")


def _function(name: str) -> str:
    """A dotted path as a file and a function."""
    module, _, function = name.rpartition(".")
    return f"{module.replace('.', '/')}.py:{function}" if module else name


_READERS: Mapping[str, Callable[[Converted, str, Any], None]] = {
    "beta": _beta,
    "loss_type": _loss_type,
    "max_length": _max_length,
    "max_seq_length": _max_length,
    "max_prompt_length": _max_prompt_length,
    "max_completion_length": _max_completion_length,
    "scale_rewards": _scale_rewards,
    "reward_clip_range": _reward_clip_range,
    "assistant_only_loss": _answers_train,
    "completion_only_loss": _answers_train,
    "datasets": _datasets,
    "steps_per_generation": _buffer,
    "generation_batch_size": _generation_batch,
    "total_episodes": _total_episodes,
    "reward_funcs": _reward_funcs,
}
