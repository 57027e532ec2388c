"""Adapter folders in peft's format, read and written without building a model."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.errors import UserError
from posttrain.models.heads import ScalarHead, find_head, read_bin
from posttrain.models.lineage import Lineage, read_lineage
from posttrain.models.load import first_line, read_json
from posttrain.models.saving import share

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"

_UNSUPPORTED = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "biases inside LoRA layers",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "LoRA on bare parameters (mixture-of-experts weights)",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron layers",
}
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """What an adapter folder holds.

    Attributes:
        config: as saved. base_model_name_or_path: "" when the folder does not say.
        state: LoRA weights by the names in the file, ``base_model.model.<module>.lora_A.weight``.
        head: score or value head beside the adapter, if any. lineage: if recorded.
    """

    config: LoraConfig
    state: dict[str, Tensor]
    base_model_name_or_path: str
    head: ScalarHead | None
    lineage: Lineage | None


def read_adapter(folder: str | Path) -> AdapterFiles:
    """Read a LoRA adapter folder: ours, LLaMA-Factory's or peft's own (causal language model or SEQ_CLS).

    Raises:
        UserError: files are missing or damaged, or the adapter uses something other than LoRA, rsLoRA or DoRA.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"the adapter folder {folder} {'is a file' if folder.exists() else 'does not exist'}.")
    if not (folder / CONFIG).is_file():
        hint = ""
        if (folder / "config.json").is_file():
            hint = " It is a whole model: write it as model_name_or_path instead."
        elif checkpoints := sorted(folder.glob(f"checkpoint-*/{CONFIG}")):
            hint = f" It has checkpoints that are: {checkpoints[-1].parent}"
        raise UserError(f"{folder} is not an adapter folder: it has no {CONFIG}.{hint}")
    raw = read_json(folder / CONFIG)
    _refuse_unsupported(folder, raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # options of later peft versions: those that matter are refused above
            kind: Any = LoraConfig
            config: LoraConfig = kind.from_peft_type(**{k: v for k, v in raw.items() if k != "runtime_config"})
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{folder / CONFIG} is not a valid LoRA configuration: {first_line(error)}") from error
    tensors = _read_weights(folder)
    # whole training states, as some trainers leave them, name the adapter inside the keys
    state = {file_key(name): tensor for name, tensor in tensors.items() if ".lora_" in name}
    if not state:
        raise UserError(f"{folder} holds no LoRA weights. Train the adapter again or copy the whole folder.")
    if any(name.startswith(f"{PREFIX}score.") for name in state):
        raise UserError(
            f"{folder}: its LoRA changes the score layer itself; train again with `score` left out of target_modules "
            "(modules_to_save trains it whole)."
        )
    return AdapterFiles(
        config=config,
        state=state,
        base_model_name_or_path=raw.get("base_model_name_or_path") or "",
        head=find_head(folder),
        lineage=read_lineage(folder),
    )


def write_adapter(
    folder: str | Path, config: LoraConfig, state: Mapping[str, Tensor], *, base_model_name_or_path: str
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as ``PeftModel.from_pretrained`` wants them.

    Args:
        folder: created when missing; each file is written whole or not at all.
        config: of the adapter.
        state: LoRA weights; the adapter's own name (``lora_A.actor.weight``) is taken out of the keys and peft's
            prefix put before them where they lack it.
        base_model_name_or_path: of the model beneath.

    Raises:
        ValueError: two keys become the same, or one is no LoRA weight.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = file_key(key)
        if name in tensors:
            raise ValueError(f"{key} is written twice: the state holds more than one adapter")
        tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    content = {name: _plain(value) for name, value in asdict(config).items() if name != "runtime_config"}
    content["base_model_name_or_path"] = base_model_name_or_path
    content["inference_mode"] = True
    content["task_type"] = content.get("task_type") or "CAUSAL_LM"
    partial = folder / f"{WEIGHTS}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    share(partial)
    os.replace(partial, folder / WEIGHTS)
    partial = folder / f"{CONFIG}.partial"
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8", newline="\n")
    os.replace(partial, folder / CONFIG)


def file_key(key: str) -> str:
    """The name of a LoRA parameter in adapter files, from its name in a model or a file.

    ``model.q_proj.lora_A.actor.weight`` becomes ``base_model.model.model.q_proj.lora_A.weight``; DoRA's magnitudes are
    named by their layer alone.

    Raises:
        ValueError: not a LoRA parameter.
    """
    kinds = f"lora_(?:embedding_)?[AB]|{MAGNITUDE}"
    matched = re.fullmatch(rf"(?P<module>.+)\.(?P<kind>{kinds})(?:\.[^.]+)??(?P<leaf>\.weight)?", key)
    if matched is None:
        raise ValueError(f"{key} is not the name of a LoRA weight")
    leaf = "" if matched["kind"] == MAGNITUDE else matched["leaf"] or ""
    return f"{PREFIX}{matched['module'].removeprefix(PREFIX)}.{matched['kind']}{leaf}"


def _refuse_unsupported(folder: Path, raw: Mapping[str, Any]) -> None:
    where = folder / CONFIG
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{where}: peft_type is {kind}; only LORA adapters can be used.")
    for option, meaning in _UNSUPPORTED.items():
        if raw.get(option):
            raise UserError(f"{where}: {option} asks for {meaning}; only LoRA, rsLoRA and DoRA can be used.")
    if raw.get("bias", "none") != "none":
        raise UserError(f"{where}: bias is {raw['bias']!r}: it changes biases of the base model. Train with bias none.")
    saved = [name for name in raw.get("modules_to_save") or () if name not in ("score", "classifier")]
    if saved:
        raise UserError(
            f"{where}: modules_to_save copies {', '.join(saved)} whole; only LoRA, rsLoRA and DoRA can be used."
        )
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        raise UserError(
            f"{where}: init_lora_weights is {start!r}, which changed the base model's weights when training began. "
            "Save the adapter with peft's path_initial_model_for_weight_conversion first."
        )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    legacy = folder / "adapter_model.bin"
    try:
        if path.is_file():
            return load_file(path)
        if legacy.is_file():
            return read_bin(legacy)
    except (SafetensorError, OSError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{path if path.is_file() else legacy}: the adapter's weights are damaged ({first_line(error)}). Copy them "
            "again."
        ) from error
    raise UserError(f"{folder} has an {CONFIG} but no weights (looked for {WEIGHTS} and {legacy.name}).")


def _plain(value: Any) -> Any:
    """JSON's idea of a configuration value; sets sorted, so that the same adapter is the same file."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
