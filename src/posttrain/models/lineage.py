"""What a folder was trained on: fingerprints of backbone, parent adapters and chat template, kept in lineage.json."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import posttrain
from posttrain.errors import UserError

FILE = "lineage.json"
_SAMPLES = 4096
_TINY = 2.0**-14
_REMEMBERED = "posttrain_fingerprint"
_PREFIXES = ("base_model.model.", "module.")
_INFIXES = {"base_layer", "original_module"}
_NOT_BASE = {"modules_to_save", "v_head", "value_head", "score", "heads"}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The base weights: where they came from and their ``fingerprint``."""

    name_or_path: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Parent:
    """An adapter that was worn during training: its folder and ``adapter_fingerprint``."""

    path: str
    fingerprint: str


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What the weights in a folder mean something on.

    Attributes:
        stage: that wrote it (pt, sft, rm, ppo, export).
        base: the backbone under everything, adapters aside.
        parents: adapters worn beneath the new one; in a merged folder, those merged in, in this order.
        template: fingerprint of the chat template; None when text was not rendered.
        template_example: an example chat as that template renders it.
        merged: the folder holds base and parents added up.
        weights: fingerprint of the folder's own weights when it holds a whole model.
        version: of posttrain. created: UTC, ISO 8601.
    """

    stage: str
    base: Backbone
    parents: tuple[Parent, ...] = ()
    template: str | None = None
    template_example: str | None = None
    merged: bool = False
    weights: str | None = None
    version: str = posttrain.__version__
    created: str = field(default_factory=_now)


def fingerprint(model: nn.Module) -> str:
    """Content hash of a model's base weights, blind to adapters, heads, wrappers, dtype and storage.

    Of each parameter: name, shape and up to 4096 values at a regular stride. Values are rounded to bfloat16 and those
    below 2⁻¹⁴ taken as 0, which makes the hash of weights stored as float16 or bfloat16 the same whether they are
    loaded as float32, bfloat16 or float16, and of weights stored as float32 whether as float32 or bfloat16.

    Args:
        model: bare, or wrapped by peft.

    Returns:
        64 hexadecimal digits; of a quantised model those that it had before.

    Raises:
        ValueError: the model has no base weights.
    """
    remembered = getattr(model, _REMEMBERED, None)
    if remembered is not None:
        return str(remembered)
    digest = hashlib.sha256()
    tensors = dict(_base_tensors(model.named_parameters()))
    if not tensors:
        raise ValueError("the model has no base weights to take a fingerprint of")
    for name in sorted(tensors):
        _absorb(digest, name, tensors[name], weight_sample(tensors[name]))
    return digest.hexdigest()


def remember_fingerprint(model: nn.Module, mark: str) -> None:
    """Let ``fingerprint`` answer with ``mark``, for a model whose weights are about to be stored in another form."""
    setattr(model, _REMEMBERED, mark)


def weight_sample(tensor: Tensor) -> Tensor:
    """[N] the values of a weight that its fingerprint is taken of, the same in every dtype it may be kept in."""
    values = tensor.detach().reshape(-1)
    sample = values[:: max(1, -(-values.numel() // _SAMPLES))].float().bfloat16().float()
    return torch.where(sample.abs() < _TINY, 0.0, sample)


def adapter_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Content hash of an adapter's weights: every value in float32, under the names that peft writes to files.

    Args:
        state: as in ``adapter_model.safetensors``; entries that are no LoRA weights are left out.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if "lora_" in name:
            _absorb(digest, name, state[name], state[name].detach().reshape(-1).float())
    return digest.hexdigest()


def write_lineage(folder: str | Path, lineage: Lineage) -> None:
    """Write ``lineage.json``, whole or not at all."""
    path = Path(folder) / FILE
    partial = path.with_suffix(".json.partial")
    partial.write_text(
        json.dumps(dataclasses.asdict(lineage), indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
    )
    os.replace(partial, path)


def read_lineage(folder: str | Path) -> Lineage | None:
    """The lineage recorded in ``folder``; None when there is none. Keys of later versions are ignored.

    Raises:
        UserError: the file is there but not readable as a lineage.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kept = _known(Lineage, content)
        kept["base"] = Backbone(**_known(Backbone, content["base"]))
        kept["parents"] = tuple(Parent(**_known(Parent, parent)) for parent in content.get("parents", ()))
        return Lineage(**kept)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Delete it to treat the folder as one of unknown lineage."
        ) from error


def check_backbone(
    lineage: Lineage | None,
    found: str,
    *,
    folder: str | Path,
    key: str,
    backbone: str = "the model in memory",
    allow_mismatch: bool = False,
) -> str | None:
    """Compare the backbone an adapter was trained on with the one it is about to be put on.

    Args:
        lineage: of the adapter; None (unknown) passes.
        found: ``fingerprint`` of the backbone at hand.
        folder: of the adapter. key: the configuration key that named it. backbone: what to call the one at hand.
        allow_mismatch: the user's own decision.

    Returns:
        None when they agree; a warning when they differ and ``allow_mismatch`` is set.

    Raises:
        UserError: they differ.
    """
    if lineage is None or lineage.base.fingerprint == found:
        return None
    differ = (
        f"{key}: {folder} was trained on {lineage.base.name_or_path} (fingerprint {lineage.base.fingerprint[:12]}), "
        f"but the backbone is {backbone} (fingerprint {found[:12]})"
    )
    if allow_mismatch:
        return f"{differ}; used all the same, as allow_mismatch says."
    raise UserError(
        f"{differ}: other weights, on which the adapter means nothing. "
        f"Use the model it was trained on, or write allow_mismatch: true to go on all the same."
    )


def check_template(
    lineage: Lineage | None,
    found: str | None,
    *,
    folder: str | Path,
    key: str,
    example: str | None = None,
    allow_mismatch: bool = False,
) -> str | None:
    """As ``check_backbone``, for the chat template; either side unknown passes, and so do equal ``example``s.

    Args:
        found: fingerprint of the template in use. example: the example chat as it renders it.
    """
    if lineage is None or lineage.template is None or found is None or lineage.template == found:
        return None
    recorded = lineage.template_example
    if recorded is not None and recorded == example:
        return None
    differ = (
        f"{key}: {folder} was trained with another chat template (fingerprint {lineage.template[:12]}) than the one "
        f"in use ({found[:12]})."
    )
    if recorded is not None and example is not None:
        then, now = (json.dumps(text, ensure_ascii=False) for text in (recorded, example))
        differ += f"\n  one chat as it was trained: {then}\n  the same chat now:          {now}\n"
    else:
        differ += " "
    if allow_mismatch:
        return f"{differ}It is used all the same, as allow_mismatch says."
    raise UserError(
        f"{differ}It would read text in a form it never saw. Write the same template (template, prompt_template, "
        "default_system), or allow_mismatch: true to go on all the same."
    )


def _base_tensors(named: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in named:
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        parts = name.split(".")
        if any(part in _NOT_BASE or part.startswith("lora_") for part in parts):
            continue
        yield ".".join(part for part in parts if part not in _INFIXES), tensor


def _absorb(digest: Any, name: str, tensor: Tensor, sample: Tensor) -> None:
    digest.update(f"{name}|{tuple(tensor.shape)}|".encode())
    digest.update(sample.cpu().contiguous().numpy().astype("<f4").tobytes())


def _known(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    return {name: value for name, value in content.items() if name in names}
