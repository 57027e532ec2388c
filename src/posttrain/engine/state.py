"""A trainer's state on disk: tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain.errors import RunError

WEIGHTS = "trainer_weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
COUNTERS = "trainer_state.json"


def write(
    folder: Path, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], counters: Mapping[str, Any]
) -> None:
    """Write weights, optimizer moments (under the parameter's name) and counters into ``folder``."""
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, folder / WEIGHTS)
    moments: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            moments[f"{name}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(moments, folder / OPTIMIZER)
    (folder / COUNTERS).write_text(json.dumps(dict(counters), indent=2), encoding="utf-8")


def read(folder: Path, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Fill weights and moments from ``folder`` and return the counters.

    Raises:
        RunError: if the checkpoint was written for other parameters.
    """
    read_weights(folder, parameters)
    for key, value in load_file(folder / OPTIMIZER).items():
        name, moment = key.rsplit("|", 1)
        parameter = parameters[name]
        device = parameter.device if moment != "step" else torch.device("cpu")
        optimizer.state[parameter][moment] = value.to(device)
    counters: dict[str, Any] = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
    return counters


def read_weights(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Fill the parameters from ``folder``.

    Raises:
        RunError: if the checkpoint was written for other parameters.
    """
    weights = load_file(folder / WEIGHTS)
    if weights.keys() != parameters.keys():
        odd = sorted(weights.keys() ^ parameters.keys())
        raise RunError(
            f"{folder} was written by a run that trains other weights ({len(odd)} differ, the first is {odd[0]}). "
            "Use the configuration it was started with, or another output_dir."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
