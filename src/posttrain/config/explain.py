"""What a configuration says, key by key: its value, where it came from, and what followed from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.config.documents import read_document
from posttrain.config.loader import STAGE_DEFAULT, split_override
from posttrain.config.run import KEYS, Command, RunConfig
from posttrain.config.stages import is_online

_UNITS = {"rm": "pairs", "dpo": "pairs", "kto": "answers"}


def command_of(path: str | Path, overrides: Sequence[str] = ()) -> Command:
    """The command that a file is most likely meant for, by the keys that it has.

    Raises:
        UserError: the file cannot be read, or an override is none.
    """
    data = dict(read_document(path).data)
    data.update(split_override(text) for text in overrides)
    if data.get("export_dir") and not data.get("do_train"):
        return "export"
    if data.get("do_train") or ("output_dir" in data and "dataset" in data and not data.get("do_predict")):
        return "train"
    if data.get("preference_judge") or data.get("output_file") or data.get("do_predict"):
        return "generate"
    if any(key.startswith("api_") for key in data):
        return "serve"
    if "task" in data or "variants" in data:
        return "eval"
    return "train" if "output_dir" in data or ("stage" in data and "dataset" in data) else "chat"


def explained(config: RunConfig, command: Command) -> dict[str, Any]:
    """The configuration as plain values.

    Returns:
        ``command``, ``about``, ``set`` and ``derived`` (key -> ``value`` and ``source``), ``notes``, ``samples``,
        ``unit``. A key at its default that nobody wrote is in neither.
    """
    stage = config.method.stage
    flat = config.to_flat()
    written = {key: config.sources[key] for key in KEYS if config.sources.get(key, STAGE_DEFAULT) != STAGE_DEFAULT}
    follows = {}
    for key, value in flat.items():
        default = list(KEYS[key].default) if isinstance(KEYS[key].default, tuple) else KEYS[key].default
        if key not in written and value != default:
            source = STAGE_DEFAULT if key in config.sources else "derived"
            follows[key] = {"value": value, "source": source}
    trains = command == "train"
    return {
        "command": command,
        "about": f"stage {stage}, finetuning_type {config.method.finetuning_type}" if trains else _about(config),
        "set": {key: {"value": flat[key], "source": source} for key, source in written.items()},
        "derived": follows,
        "notes": list(config.warnings),
        "samples": is_online(stage),
        "unit": "completions" if is_online(stage) else _UNITS.get(stage, "rows"),
    }


def _about(config: RunConfig) -> str:
    adapters = ", ".join(config.model.adapter_name_or_path)
    return f"{config.model.model_name_or_path}{' with ' + adapters if adapters else ''}"
