"""Optimizers by the names of transformers, over groups of parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from posttrain.engine.optimizer import OptimizerSettings
from posttrain.errors import UserError
from posttrain.models.adafactor import OPTIONS, adafactor
from posttrain.models.quantize import bitsandbytes

Groups = Sequence[dict[str, Any]]

_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
    "lion_8bit": "Lion8bit",
    "lion_32bit": "Lion32bit",
    "paged_lion_8bit": "PagedLion8bit",
    "paged_lion_32bit": "PagedLion32bit",
    "ademamix": "AdEMAMix",
    "ademamix_8bit": "AdEMAMix8bit",
    "paged_ademamix_8bit": "PagedAdEMAMix8bit",
    "paged_ademamix_32bit": "PagedAdEMAMix",
    "rmsprop_bnb": "RMSprop",
    "rmsprop_bnb_8bit": "RMSprop8bit",
    "rmsprop_bnb_32bit": "RMSprop32bit",
}
_PAGED = "paged_"
_NO_BETAS = ("sgd", "adagrad", "rmsprop", "adafactor")


def state_bytes(name: str) -> float:
    """Bytes of state for each number that trains; small weights keep 32 bits where others have 8."""
    copies = 3 if "ademamix" in name else 1 if "lion" in name or "rmsprop" in name or name == "adagrad" else 2
    if name in ("sgd", "adafactor"):  # a momentum given in optim_args aside; a row and a column of each matrix
        copies = 0
    return copies * (1 + 4 / 256 if name.endswith("_8bit") else 4)


def make_optimizer(groups: Groups, settings: OptimizerSettings, device: torch.device) -> Optimizer:
    """The optimizer that ``settings.name`` names.

    ``betas`` and ``eps`` go to the Adam and Lion families; the others keep their library's own, which ``options``
    change.

    Raises:
        UserError: its library is missing, or an option is none of it.
    """
    name = settings.name.removeprefix(_PAGED) if paging_note(settings.name, device) else settings.name
    options = dict(settings.options)
    if name not in _NO_BETAS and "rmsprop" not in name:
        if "ademamix" not in name:  # it has three of them
            options = {"betas": settings.betas, **options}
        if "lion" not in name:
            options = {"eps": settings.eps, **options}
    if name in _BITSANDBYTES:
        library = bitsandbytes(f"optim: {settings.name}")
        return _made(getattr(library.optim, _BITSANDBYTES[name]), groups, options, settings.name)
    if f"{_PAGED}{name}" in _BITSANDBYTES:  # adamw_32bit, which transformers has paged only
        library = bitsandbytes(f"optim: {settings.name}")
        kind = getattr(library.optim, _BITSANDBYTES[f"{_PAGED}{name}"].removeprefix("Paged"))
        return _made(kind, groups, options, settings.name)
    if name == "adafactor":
        return _made(adafactor, groups, options, name)
    if name in ("adamw_torch", "adamw_torch_fused"):
        fused = {} if options.get("foreach") else {"fused": True}
        return _made(torch.optim.AdamW, groups, {**fused, **options}, name)
    kinds: dict[str, Callable[..., Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
    }
    return _made(kinds[name], groups, options, name)


def paging_note(name: str, device: torch.device) -> str | None:
    """What is used in place of an optimizer whose states can be paged out of a GPU, where there is none."""
    if not name.startswith(_PAGED) or device.type == "cuda":
        return None
    return (
        f"optim: {name} pages states between a GPU and the memory; on {device.type} it is "
        f"{name.removeprefix(_PAGED)}, with the same update."
    )


def _made(kind: Callable[..., Optimizer], groups: Groups, options: dict[str, Any], name: str) -> Optimizer:
    known = set(_parameters(kind)) - {"params", "lr", "weight_decay", "self"}
    for option in options:
        if option not in known:
            raise UserError(f"optim_args: {option} is no argument of {name}, which takes {', '.join(sorted(known))}")
        usual = _defaults(kind).get(option)
        if usual is not None and _sort(usual) is not _sort(options[option]):
            raise UserError(f"optim_args: {option} of {name} is such as {usual}, not {options[option]!r}")
    try:
        return kind(groups, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"optim_args: {name} does not take {options} ({error})") from error


def _sort(value: Any) -> type:
    """Numbers of both kinds are one sort of value, lists and tuples another."""
    return float if type(value) in (int, float) else tuple if isinstance(value, list | tuple) else type(value)


def _defaults(kind: Callable[..., Optimizer]) -> dict[str, Any]:
    target = kind.__init__ if isinstance(kind, type) else kind  # type: ignore[misc]
    found = inspect.signature(target).parameters.values()
    return {each.name: each.default for each in found if each.default is not inspect.Parameter.empty}


def _parameters(kind: Callable[..., Optimizer]) -> list[str]:
    if kind is adafactor:
        return list(OPTIONS)
    target = kind.__init__ if isinstance(kind, type) else kind  # type: ignore[misc]
    return list(inspect.signature(target).parameters)
