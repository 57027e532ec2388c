"""A trainer's state on disk: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain.errors import UserError
from posttrain.models.load import first_line
from posttrain.models.saving import share

WEIGHTS = "trainer_weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
COUNTERS = "trainer_state.json"


def write_weights(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Write what trains into ``folder``."""
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, folder / WEIGHTS)
    share(folder / WEIGHTS)


def write(
    folder: Path, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], counters: Mapping[str, Any]
) -> None:
    """Write optimizer moments (under the parameter's name) and counters into ``folder``."""
    moments: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(moments, folder / OPTIMIZER)
    share(folder / OPTIMIZER)
    (folder / COUNTERS).write_text(json.dumps(dict(counters), indent=2), encoding="utf-8")


def read(folder: Path, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Fill weights and moments from ``folder`` and return the counters.

    Raises:
        UserError: as ``read_weights``.
    """
    read_weights(folder, parameters)
    for key, value in _tensors(folder / OPTIMIZER).items():
        name, _, moment = key.rpartition("|")
        parameter = parameters.get(name)
        if parameter is None or (moment != "step" and value.shape != parameter.shape):
            raise unreadable(folder / OPTIMIZER, ValueError(f"{key} is of no weight that trains"))
        optimizer.state[parameter][moment] = value.to(parameter.device)  # the fused optimizer's step count too
    try:
        return dict(json.loads((folder / COUNTERS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(folder / COUNTERS, error) from error


def read_weights(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Fill the parameters from ``folder``.

    Raises:
        UserError: if they cannot be read, or the checkpoint was written for other parameters.
    """
    weights = _tensors(folder / WEIGHTS)
    advice = "Use the configuration it was started with; or start afresh, with overwrite_output_dir: true."
    if weights.keys() != parameters.keys():
        odd = sorted(weights.keys() ^ parameters.keys())
        raise UserError(
            f"{folder} was written by a run that trains other weights ({len(odd)} differ, the first is {odd[0]}). "
            f"{advice}"
        )
    for name, parameter in parameters.items():
        there, here = tuple(weights[name].shape), tuple(parameter.shape)
        if there != here:
            raise UserError(
                f"{folder} was written by a run whose weights have other shapes: {name} is {list(there)} there and "
                f"{list(here)} here, as after a change of lora_rank or of the model. {advice}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for a file of a checkpoint that is missing, damaged, or of another program."""
    return UserError(
        f"{path} cannot be read as part of a checkpoint ({type(error).__name__}: {first_line(error)}). Continue from "
        "another checkpoint (resume_from_checkpoint: folder), or start afresh with overwrite_output_dir: true."
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
