"""A model folder as transformers 4.41 and tokenizers 0.19 read it: weights are linked, newer spellings put back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PUT_BACK = ("config.json", "tokenizer.json", "tokenizer_config.json")


def older_folder(folder: Path, place: Path) -> Path:
    """The folder under ``place``, made unless it is there.

    Transformers 5 writes rope_parameters for rope_theta and rope_scaling, and dtype for torch_dtype: 4.41 would take
    its defaults without a word. Merges of a tokenizer are pairs now and were strings; its class has another name.
    """
    if (place / "config.json").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name not in PUT_BACK:
            (place / path.name).symlink_to(path.resolve())
    _write(place / "tokenizer.json", _tokenizer(_read(folder / "tokenizer.json")))
    _write(place / "tokenizer_config.json", _tokenizer_config(folder))
    _write(place / "config.json", _config(_read(folder / "config.json")))
    return place


def _config(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.pop("rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind != "default":
        raise ValueError(f"rope of type {kind} is not what transformers 4.41 calls it")
    if "rope_theta" in rope:
        config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    return config


def _tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    merges = tokenizer["model"].get("merges", [])
    tokenizer["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return tokenizer


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    config = _read(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    if template.is_file():
        config.setdefault("chat_template", template.read_text(encoding="utf-8"))
    special = config.pop("extra_special_tokens", None)
    if isinstance(special, list):
        config["additional_special_tokens"] = special
    return config | {"tokenizer_class": "PreTrainedTokenizerFast"}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
