"""Whether a folder holds the weights of a model in memory, found out from samples of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.errors import UserError
from posttrain.models.heads import read_bin
from posttrain.models.lineage import weight_sample
from posttrain.models.load import read_json

_HEADS = ("score.",)


def holds(folder: Path, model: PreTrainedModel) -> bool:
    """Whether the weight files in ``folder`` are those of ``model``: each parameter is there, of its shape and values.

    A classifier's ``score`` is left out, as it is no part of the language model. Values are compared as a fingerprint
    does, by samples rounded to bfloat16. A folder that keeps its weights under other names counts as another model.
    """
    try:
        stored = _readers(folder)
        return bool(stored) and all(
            _same(stored, name, parameter, model.base_model_prefix)
            for name, parameter in model.named_parameters()
            if not name.startswith(_HEADS)
        )
    except (SafetensorError, OSError, RuntimeError, ValueError, UserError):
        return False


def has_output_head(folder: Path, model: PreTrainedModel) -> bool:
    """Whether a folder that holds the trunk of ``model`` loads as a language model: its head is tied, or stored."""
    if model.config.get_text_config().tie_word_embeddings:
        return True
    inside = f"{model.base_model_prefix}."
    named = (name for name in _readers(folder) if name.endswith(("lm_head.weight", "embed_out.weight")))
    return any(not name.startswith(inside) for name in named)


def _readers(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """Name -> how to read it, of every tensor in the weight files."""
    for file in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{file}.index.json"
        if index.is_file():
            shards = set(read_json(index).get("weight_map", {}).values())
            return {name: read for shard in shards for name, read in _of_file(folder / shard).items()}
        if (folder / file).is_file():
            return _of_file(folder / file)
    return {}


def _of_file(path: Path) -> dict[str, Callable[[], Tensor]]:
    if path.suffix == ".bin":
        return {name: lambda tensor=tensor: tensor for name, tensor in read_bin(path).items()}  # type: ignore[misc]

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
                return tensor

        return read

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    return {name: reader(name) for name in names}


def _same(stored: Mapping[str, Callable[[], Tensor]], name: str, own: nn.Parameter, prefix: str) -> bool:
    names = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    read = next((stored[candidate] for candidate in names if candidate in stored), None)
    if read is None:
        return False
    tensor = read()
    return tensor.shape == own.shape and torch.equal(weight_sample(tensor), weight_sample(own).cpu())
