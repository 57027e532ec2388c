"""peft's own LoraConfig as the keys of a configuration; what cannot be honoured is refused field by field."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from posttrain.errors import UserError
from posttrain.models.load import first_line, quiet

_KEYS = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "use_rslora": "use_rslora",
}
_SWITCHES = {"use_dora": "use_dora"}
# target_modules and its companions are resolved; the others say nothing about what is trained
_READ = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("task_type", "inference_mode", "modules_to_save", "init_lora_weights", "bias"),
    *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "runtime_config"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
_SENTENCES = {
    "rank_pattern": "every layer has the rank `r`",
    "alpha_pattern": "every layer has `lora_alpha`",
    "trainable_token_indices": "embeddings are not trained beside an adapter; without peft_config all weights are",
    "target_parameters": "adapters are put on linear layers; name those in target_modules",
    "layer_replication": "layers are not replicated; save the expanded model first",
    "lora_bias": "LoRA layers have no bias here",
    "loftq_config": "the base keeps its weights",
}
_PLAIN_LORA = "the adapters are LoRA, and this is another kind"
_TASKS = {"CAUSAL_LM": "a language model", "SEQ_CLS": "a reward model"}


def lora_keys(config: object, model: PreTrainedModel | Path, *, scores: bool) -> dict[str, Any]:
    """The keys that ask for the adapter that a ``LoraConfig`` describes.

    Args:
        config: peft's.
        model: it goes on: in memory, or its folder, from which no weights are read.
        scores: a reward model is trained, whose head always trains and is saved with the adapter.

    Raises:
        UserError: it is of another kind, or a field of it cannot be honoured; names the field.
    """
    if not isinstance(config, LoraConfig):
        raise UserError(
            f"peft_config is a {type(config).__name__}; give a peft.LoraConfig, or leave it out to train all weights"
        )
    for name, sentence in _refusals(config, scores=scores):
        raise UserError(f"peft_config: `{name}={getattr(config, name)!r}` cannot be honoured: {sentence}")
    switches: dict[str, Any] = {key: True for name, key in _SWITCHES.items() if getattr(config, name)}
    start = config.init_lora_weights
    if isinstance(start, str) and start.startswith("pissa"):
        switches["pissa_init"] = True
        if start != "pissa":
            switches["pissa_iter"] = int(start.rsplit("_", 1)[-1])
    return {
        "finetuning_type": "lora",
        **{key: getattr(config, name) for name, key in _KEYS.items()},
        "lora_target": _targets(config, model),
        **switches,
    }


def _refusals(config: LoraConfig, *, scores: bool) -> list[tuple[str, str]]:
    """(field, sentence) of everything that was asked for and is not to be had."""
    found = []
    task = getattr(config.task_type, "value", config.task_type)
    wanted = "SEQ_CLS" if scores else "CAUSAL_LM"
    if task not in (None, "CAUSAL_LM", wanted):
        trains = f"that is for {_TASKS[task]}, and" if task in _TASKS else ""
        found.append(("task_type", f"{trains} this trains {_TASKS[wanted]}; write TaskType.{wanted}".strip()))
    if config.inference_mode:
        found.append(("inference_mode", "the adapter is to be trained; leave it out"))
    if config.bias != "none":
        found.append(("bias", "it would change the base model; write bias='none'"))
    others = [name for name in config.modules_to_save or () if not (scores and name in ("score", "classifier"))]
    if others:
        head = "the score head is trained and saved in any case" if scores else "only the adapter is trained"
        found.append(("modules_to_save", f"{head}; leave peft_config out to train all weights"))
    start = config.init_lora_weights
    if start is not True and not (isinstance(start, str) and start.startswith("pissa")):
        found.append(("init_lora_weights", "adapters begin with A random and B zero; leave it out"))
    defaults = LoraConfig()
    for field in dataclasses.fields(config):
        known = field.name in _KEYS or field.name in _SWITCHES or field.name in _READ
        if not known and getattr(config, field.name) != getattr(defaults, field.name, None):
            found.append((field.name, f"{_SENTENCES.get(field.name, _PLAIN_LORA)}; leave it out"))
    return found


def _targets(config: LoraConfig, model: PreTrainedModel | Path) -> list[str]:
    """``lora_target``: names as they were given where they are plain, else those of the layers that they mean."""
    wanted = config.target_modules
    narrowed = config.exclude_modules or config.layers_to_transform is not None
    if wanted == "all-linear" and not narrowed:
        return ["all"]
    if wanted is not None and not isinstance(wanted, str) and not narrowed:
        return sorted(wanted)
    skeleton = model if isinstance(model, PreTrainedModel) else _skeleton(model)
    kind = str(skeleton.config.model_type)
    if wanted is None:
        if kind not in DEFAULT_TARGETS:
            raise UserError(
                f"peft_config: peft knows no default `target_modules` for models of type {kind}; name the layers, or "
                'write target_modules="all-linear"'
            )
        if not narrowed:
            return sorted(DEFAULT_TARGETS[kind])
        wanted = list(DEFAULT_TARGETS[kind])
    head = skeleton.get_output_embeddings() or getattr(skeleton, "score", None)
    linear = [
        name for name, part in skeleton.named_modules() if isinstance(part, nn.Linear | Conv1D) and part is not head
    ]
    # peft means every layer by this name only once it has the model before it
    asked = LoraConfig(
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in linear}) if wanted == "all-linear" else wanted,
        exclude_modules=config.exclude_modules,
        layers_to_transform=config.layers_to_transform,
        layers_pattern=config.layers_pattern,
    )
    chosen = [name for name in linear if check_target_module_exists(asked, name)]
    if not chosen:
        names = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        raise UserError(
            f"peft_config: `target_modules={config.target_modules!r}` means no linear layer of "
            f"{type(skeleton).__name__}; its layers are called {names}"
        )
    short = {name.rsplit(".", 1)[-1] for name in chosen}
    whole = sum(name.rsplit(".", 1)[-1] in short for name in linear) == len(chosen)
    return sorted(short) if whole else chosen


def _skeleton(folder: Path) -> PreTrainedModel:
    """The model of a folder without its weights."""
    try:
        with torch.device("meta"), quiet():
            config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
            return model
    except Exception as error:  # configurations and architectures fail with classes of their own
        raise UserError(f"{folder} cannot be read as a causal language model: {first_line(error)}") from error
