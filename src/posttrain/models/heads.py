"""Scalar heads on a trunk: reward scores and values, written and read in the layouts that users have."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.errors import UserError
from posttrain.models.load import first_line, read_json
from posttrain.models.saving import share

Kind = Literal["score", "value"]

FILE = "value_head.safetensors"
_OWN = ("v_head.summary.weight", "v_head.summary.bias")
_SCORE = ("score.weight", "score.bias")
_PEFT = ("base_model.model.score.weight", "base_model.model.score.bias")
_PLACES: tuple[tuple[str, tuple[str, str]], ...] = (
    (FILE, _OWN),
    ("value_head.bin", _OWN),
    ("adapter_model.safetensors", _PEFT),
    ("adapter_model.bin", _PEFT),
    ("model.safetensors", _SCORE),
    ("model.safetensors.index.json", _SCORE),
)


class ScalarHead(nn.Module):
    """h ↦ w·h + b in float32, whatever the trunk's dtype: bfloat16 cannot tell close scores apart.

    The bias of a score is a constant that no comparison of two scores can see, so it is kept but not trained;
    the bias of a value is trained.

    Attributes:
        kind: "score" (one per sequence) or "value" (one per token).
        weight: [1, D] parameter. bias: [1], a parameter of a value head, a buffer of a score head.
    """

    def __init__(self, hidden_size: int, kind: Kind, *, generator: torch.Generator | None = None) -> None:
        """A fresh head: scores start small and random (std 1/√(D + 1)), values at 0."""
        super().__init__()
        self.kind: Kind = kind
        weight = torch.zeros(1, hidden_size)
        if kind == "score":
            weight.normal_(std=(hidden_size + 1) ** -0.5, generator=generator)
        self.weight = nn.Parameter(weight)
        self.bias: Tensor
        if kind == "value":
            self.bias = nn.Parameter(torch.zeros(1))
        else:
            self.register_buffer("bias", torch.zeros(1))

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.weight.shape[1])

    def forward(self, hidden: Tensor) -> Tensor:
        """Args: hidden: [..., D], any float dtype. Returns: [...] float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight, self.bias).squeeze(-1)

    def rescaled(self, scale: float, shift: float, *, kind: Kind = "value") -> ScalarHead:
        """A new head that answers ``scale * old + shift``; starts a critic on the scale of normalised rewards."""
        return _filled(self.weight.detach() * scale, self.bias.detach() * scale + shift, kind).to(self.weight.device)

    def save(self, folder: str | Path) -> None:
        """Write ``value_head.safetensors`` in LLaMA-Factory's layout, whole or not at all."""
        path = Path(folder) / FILE
        partial = path.with_suffix(".safetensors.partial")
        tensors = {_OWN[0]: self.weight.detach().cpu().contiguous(), _OWN[1]: self.bias.detach().cpu().contiguous()}
        save_file(tensors, partial, metadata={"format": "pt", "kind": self.kind})
        share(partial)
        os.replace(partial, path)

    @classmethod
    def load(cls, folder: str | Path, hidden_size: int, *, kind: Kind = "score") -> ScalarHead:
        """The head in ``folder``, in any layout that ``find_head`` knows.

        Args:
            folder: an adapter or model folder.
            hidden_size: D of the trunk it goes on.
            kind: what to use it as.

        Raises:
            UserError: there is no head, more than one output, or another hidden size.
        """
        head = find_head(folder, kind=kind)
        if head is None:
            raise UserError(
                f"{folder} has no score head: none of {', '.join(name for name, _ in _PLACES[:5])} in it holds one. "
                "Point to the output folder of a reward stage; if the head was left behind when the adapter was "
                "copied, copy value_head.safetensors too."
            )
        if head.hidden_size != hidden_size:
            raise UserError(
                f"{folder}: its head is for a model of hidden size {head.hidden_size}, the model at hand has "
                f"{hidden_size}. It was trained on another model."
            )
        return head

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keeping_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keeping_float32, recurse)  # type: ignore[no-untyped-call]
        return self


def find_head(folder: str | Path, *, kind: Kind = "score") -> ScalarHead | None:
    """The head in ``folder``; None when there is none.

    Read in this order: ``value_head.safetensors`` and ``value_head.bin`` (ours and LLaMA-Factory's,
    ``v_head.summary.*``), a peft SEQ_CLS adapter (``base_model.model.score.*``), a sequence classifier (``score.*``).

    Raises:
        UserError: a file is damaged, or the head has more than one output.
    """
    for file, (weight_name, bias_name) in _PLACES:
        path = Path(folder) / file
        if not path.is_file():
            continue
        tensors = _read(path, (weight_name, bias_name))
        weight = tensors.get(weight_name)
        if weight is None:
            continue
        if weight.dim() != 2 or weight.shape[0] != 1:
            raise UserError(
                f"{path}: {weight_name} has shape {tuple(weight.shape)}; a head has one output, [1, hidden size]."
            )
        return _filled(weight, tensors.get(bias_name, torch.zeros(1)), kind)
    return None


def _filled(weight: Tensor, bias: Tensor, kind: Kind) -> ScalarHead:
    with torch.no_grad():
        head = ScalarHead(weight.shape[1], "value")
        if kind == "score":
            head = ScalarHead(weight.shape[1], "score", generator=torch.Generator())
        head.weight.copy_(weight.float())
        head.bias.copy_(bias.float().reshape(1))
    return head


def _read(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Those of ``names`` that ``path`` holds."""
    try:
        if path.name.endswith(".index.json"):
            shards = read_json(path).get("weight_map", {})
            return {n: _read(path.parent / shards[n], (n,))[n] for n in names if n in shards}
        if path.suffix == ".bin":
            state = torch.load(path, map_location="cpu", weights_only=True)
            return {name: state[name] for name in names if name in state}
        with safe_open(path, framework="pt") as file:
            held = set(file.keys())
            return {name: file.get_tensor(name) for name in names if name in held}
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged or incomplete ({first_line(error)}). Copy it again.") from error
