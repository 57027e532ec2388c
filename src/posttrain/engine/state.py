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
CLOCK = "clock.json"
_OPTIMIZER_KIND = "optimizer"
_SHAPED = ("exp_avg", "exp_avg_sq", "sum", "square_avg", "momentum_buffer")
_CLOCKS = ("computed_seconds",)  # these differ from run to run, so they lie apart from what must not


def write_weights(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Write what trains into ``folder``."""
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, folder / WEIGHTS)
    share(folder / WEIGHTS)


def write(
    folder: Path, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], counters: Mapping[str, Any]
) -> None:
    """Write optimizer states (under the parameter's name) and counters into ``folder``; clocks in a third file.

    Plain numbers are kept as scalars of 64 bits, which tells them from tensors when they are read.
    """
    moments: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                value = torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
            moments[f"{name}|{key}"] = value.detach().cpu().clone().contiguous()
    counters = {**counters, _OPTIMIZER_KIND: kind_of(optimizer)}
    save_file(moments, folder / OPTIMIZER)
    share(folder / OPTIMIZER)
    kinds = {COUNTERS: counters.keys() - set(_CLOCKS), CLOCK: counters.keys() & set(_CLOCKS)}
    for file, names in kinds.items():
        values = {name: value for name, value in counters.items() if name in names}
        (folder / file).write_text(json.dumps(values, indent=2), encoding="utf-8")


def read(folder: Path, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Any]:
    """Fill weights and moments from ``folder`` and return the counters.

    Raises:
        UserError: as ``read_weights``.
    """
    counters = _counters(folder / COUNTERS)
    _check_kind(folder, counters.pop(_OPTIMIZER_KIND, None), optimizer)
    read_weights(folder, parameters)
    for key, value in _tensors(folder / OPTIMIZER).items():
        name, _, moment = key.rpartition("|")
        parameter = parameters.get(name)
        if parameter is None or (moment in _SHAPED and value.shape != parameter.shape):
            raise unreadable(folder / OPTIMIZER, ValueError(f"{key} is of no weight that trains"))
        is_number = value.dim() == 0 and value.dtype in (torch.int64, torch.float64)
        # the fused optimizer's step count is a tensor, and lies where the weights do
        optimizer.state[parameter][moment] = value.item() if is_number else value.to(parameter.device)
    clocks = _counters(folder / CLOCK) if (folder / CLOCK).is_file() else {}
    return clocks | counters


def _check_kind(folder: Path, there: str | None, optimizer: torch.optim.Optimizer) -> None:
    """Refuse the states of another optimizer."""
    here = kind_of(optimizer)
    if there not in (None, here):
        raise UserError(
            f"{folder} was written by a run with another optimizer ({there}, here {here}). Use the same optim; or "
            "start afresh, with overwrite_output_dir: true."
        )


def kind_of(optimizer: torch.optim.Optimizer) -> str:
    """What a checkpoint says of the optimizer that wrote it: paged or not, the states are the same."""
    return type(optimizer).__name__.removeprefix("Paged")


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


class DamagedError(UserError):
    """A file of a checkpoint that is missing, damaged, or of another program; says which, not what to do."""


def unreadable(path: Path, error: Exception) -> DamagedError:
    """The error for such a file."""
    return DamagedError(f"{path} cannot be read as part of a checkpoint ({type(error).__name__}: {first_line(error)}).")


def _counters(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
