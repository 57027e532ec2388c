"""The base model of a configuration: where it lies, in which precision and on which device it is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from posttrain.config import RunConfig
from posttrain.models.fetch import resolve_model
from posttrain.models.load import DtypeName, load_causal_lm


def device() -> torch.device:
    """Where models run: the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_folder(config: RunConfig) -> Path:
    """The local folder of ``model_name_or_path`` at ``model_revision``."""
    model = config.model
    return Path(resolve_model(model.model_name_or_path, revision=model.model_revision, cache_dir=model.cache_dir))


def precision(
    config: RunConfig, where: torch.device, *, trains_base: bool = False
) -> tuple[DtypeName, tuple[str, ...]]:
    """The dtype that weights are loaded in, and sentences for the user where that is not what the keys suggest.

    ``dtype: auto`` is what ``bf16`` or ``fp16`` ask for, else float32; any other ``dtype`` decides alone.

    Args:
        config: with ``dtype``, ``bf16`` and ``fp16``.
        where: the device; one that is no GPU computes in float32.
        trains_base: the base weights themselves train. Those are float32: in half precision a step of training is
            smaller than the distance between neighbouring numbers, and gets lost.
    """
    if where.type != "cuda":
        return "float32", ()
    flag = "bf16" if config.train.bf16 else "fp16" if config.train.fp16 else None
    halves: dict[str | None, DtypeName] = {"bf16": "bfloat16", "fp16": "float16"}
    asked: DtypeName = halves.get(flag, "float32")
    notes: tuple[str, ...] = ()
    chosen = config.model.dtype
    if chosen != "auto":
        if flag and chosen != asked:
            notes = (f"dtype: {chosen} decides the precision; {flag}: true changes nothing beside it.",)
        asked = chosen
    if trains_base and asked != "float32":
        kind = config.method.finetuning_type
        return "float32", (
            f"finetuning_type: {kind} trains the weights themselves, so they are loaded and computed in float32, not "
            f"{asked}, which would round small steps away. finetuning_type: lora computes in {asked}.",
        )
    return asked, notes


def load_backbone(config: RunConfig, name_or_path: str | None = None, *, trains_base: bool = False) -> PreTrainedModel:
    """The base model of a configuration, frozen, its dtype chosen for the device.

    Args:
        config: names the model.
        name_or_path: another model instead, to which ``model_revision`` does not apply.
        trains_base: see ``precision``.
    """
    where = device()
    model = config.model
    folder = model_folder(config) if name_or_path is None else resolve_model(name_or_path, cache_dir=model.cache_dir)
    dtype, _ = precision(config, where, trains_base=trains_base)
    loaded = load_causal_lm(folder, dtype=dtype, device=where, trust_remote_code=model.trust_remote_code)
    loaded.requires_grad_(False)
    return loaded
