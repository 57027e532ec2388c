"""The base model of a configuration: where it lies, in which precision and on which device it is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from posttrain.config import RunConfig
from posttrain.errors import UserError
from posttrain.models.fetch import resolve_model
from posttrain.models.load import DtypeName, choose_dtype, load_causal_lm
from posttrain.models.quantize import Quantization, bitsandbytes, quantize


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
    notes = _placement(config, where)
    how = None if trains_base else Quantization.configured(config.model)
    if how is not None:
        notes += (f"quantization_bit: the linear layers of the base are kept in {how}; adapters train in float32.",)
    flag = "bf16" if config.train.bf16 else "fp16" if config.train.fp16 else None
    if where.type != "cuda":
        if flag:
            notes += (f"{flag}: true is for a GPU, and there is none; float32 is computed.",)
        return "float32", notes
    halves: dict[str | None, DtypeName] = {"bf16": "bfloat16", "fp16": "float16"}
    asked: DtypeName = halves.get(flag, "float32")
    chosen = config.model.dtype
    if chosen != "auto":
        if flag and chosen != asked:
            notes += (f"dtype: {chosen} decides the precision; {flag}: true changes nothing beside it.",)
        asked = chosen
    if trains_base and asked != "float32":
        kind = config.method.finetuning_type
        return "float32", (
            *notes,
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
    where = _place(config)
    model = config.model
    how = None if trains_base else Quantization.configured(model)
    if how is not None:
        bitsandbytes()  # what is missing is said before gigabytes are read
    folder = model_folder(config) if name_or_path is None else resolve_model(name_or_path, cache_dir=model.cache_dir)
    dtype, _ = precision(config, where, trains_base=trains_base)
    remote = model.trust_remote_code
    if how is None:
        loaded = load_causal_lm(folder, dtype=dtype, device=where, trust_remote_code=remote)
    else:
        loaded = load_causal_lm(folder, as_stored=True, trust_remote_code=remote)
        quantize(loaded, how, where, choose_dtype(dtype, where, folder)[0])
    loaded.requires_grad_(False)
    return loaded


def _place(config: RunConfig) -> torch.device:
    """The device of ``device_map``.

    Raises:
        UserError: it is not there.
    """
    wanted, found = config.model.device_map, device()
    if wanted in (None, "auto"):
        return found
    kind, _, number = str(wanted).partition(":")
    if kind == "cpu" and found.type != "cpu":
        raise UserError(
            "device_map: cpu is not taken on a machine with a GPU, which all parts of a run use; set the environment "
            "variable CUDA_VISIBLE_DEVICES to an empty value to stay on the CPU"
        )
    if kind != found.type or (number and (not number.isdecimal() or int(number) >= torch.cuda.device_count())):
        have = f"{torch.cuda.device_count()} GPU(s)" if found.type == "cuda" else "no GPU that torch can use"
        raise UserError(f"device_map: {wanted} is not there: this machine has {have}; write device_map: auto")
    if number and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"device_map: {wanted} would put every process of this run onto one GPU; write device_map: auto, and "
            "choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    if number:
        torch.cuda.set_device(int(number))
    return found


def _placement(config: RunConfig, where: torch.device) -> tuple[str, ...]:
    count = torch.cuda.device_count() if where.type == "cuda" else 0
    if config.model.device_map != "auto" or count < 2:
        return ()
    return (
        f"device_map: auto puts the whole model on one of the {count} GPUs; `torchrun --nproc-per-node {count} -m "
        "posttrain train ...` shares the work among all of them.",
    )
