"""Scalar heads on a trunk: reward scores and values, written and read in the layouts that users have."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.errors import UserError
from posttrain.models.load import first_line, read_json
from posttrain.models.saving import save_tensors, share
from posttrain.types import Batch

Kind = Literal["score", "value"]

FILE = "value_head.safetensors"
_OWN = ("v_head.summary.weight", "v_head.summary.bias")
# value heads have files of their own; a sequence classifier keeps its head among the weights, peft under its prefix
_ALONE = r"(?P<module>v_head\.summary|summary)"
_PEFT = r"(?:base_model\.model\.)?(?P<module>score)(?:\.modules_to_save(?:\.[^.]+)?)?"
_INSIDE = r"(?:module\.)?(?:pretrained_model\.)?(?P<module>score|v_head\.summary|value_fn)"
_PLACES = {
    FILE: _ALONE,
    "value_head.bin": _ALONE,
    "adapter_model.safetensors": _PEFT,
    "adapter_model.bin": _PEFT,
    "model.safetensors": _INSIDE,
    "model.safetensors.index.json": _INSIDE,
    "pytorch_model.bin": _INSIDE,
    "pytorch_model.bin.index.json": _INSIDE,
}


def trunk_width(config: Any) -> int:
    """D of the states that a trunk ends with: the hidden size, or what OPT projects it to behind the last layer."""
    text = config.get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


class ScalarHead(nn.Module):
    """h ↦ w·h + b in float32, whatever the trunk's dtype: bfloat16 cannot tell close scores apart.

    The bias of a score is a constant that no comparison of two scores can see, so it is kept but not trained;
    the bias of a value is trained.

    Attributes:
        kind: "score" (one per sequence) or "value" (one per token).
        weight: [1, D] parameter. bias: [1], a parameter of a value head, a buffer of a score head.
        skips: a token at which no score is read, see ``ends``.
    """

    def __init__(self, hidden_size: int, kind: Kind, *, generator: torch.Generator | None = None) -> None:
        """A fresh head: scores start small and random (std 1/√(D + 1)), values at 0."""
        super().__init__()
        self.kind: Kind = kind
        self.skips: int | None = None
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

    def ends(self, batch: Batch) -> Tensor:
        """[B] the column at which each sequence is scored: its last real token, or its last one that is not ``skips``.

        Sequence classifiers take every padding token at the end for padding, even where it ends the text.
        """
        if self.skips is None:
            return batch.lengths - 1
        columns = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        return (columns * (batch.attention_mask & (batch.input_ids != self.skips))).argmax(dim=1)

    def rescaled(self, scale: float, shift: float, *, kind: Kind = "value") -> ScalarHead:
        """A new head that answers ``scale * old + shift``; starts a critic on the scale of normalised rewards."""
        return _filled(self.weight.detach() * scale, self.bias.detach() * scale + shift, kind).to(self.weight.device)

    def save(self, folder: str | Path) -> None:
        """Write ``value_head.safetensors`` in LLaMA-Factory's layout, whole or not at all."""
        path = Path(folder) / FILE
        partial = path.with_suffix(".safetensors.partial")
        tensors = {_OWN[0]: self.weight.detach().cpu().contiguous(), _OWN[1]: self.bias.detach().cpu().contiguous()}
        skips = {} if self.skips is None else {"skips": str(self.skips)}
        save_tensors(tensors, partial, {"format": "pt", "kind": self.kind, **skips})
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
            raise no_head(folder)
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


@dataclass(frozen=True, kw_only=True)
class FoundHead:
    """The weights of a head in a file.

    Attributes:
        path: the file. module: what the layer is called there: v_head.summary, summary, score or value_fn.
        weight: [1, D]. bias: [1], or None.
        skips: a token at which the folder's own code reads no score.
    """

    path: Path
    module: str
    weight: Tensor
    bias: Tensor | None
    skips: int | None = None

    def head(self, kind: Kind = "score") -> ScalarHead:
        """As a module in float32."""
        head = _filled(self.weight, torch.zeros(1) if self.bias is None else self.bias, kind)
        head.skips = self.skips
        return head

    def agrees(self, other: FoundHead) -> bool:
        """Whether both say the same."""
        mine, others = self.head(), other.head()
        return torch.equal(mine.weight, others.weight) and torch.equal(mine.bias, others.bias)


def find_head(folder: str | Path, *, kind: Kind = "score") -> ScalarHead | None:
    """The first head in ``folder``, see ``find_heads``; None when there is none."""
    found = next(iter(find_heads(folder)), None)
    return None if found is None else found.head(kind)


def find_heads(folder: str | Path) -> Iterator[FoundHead]:
    """Every head in ``folder``.

    Read in this order: ``value_head.safetensors`` and ``value_head.bin`` (ours and LLaMA-Factory's,
    ``v_head.summary.*``), a peft SEQ_CLS adapter (``base_model.model.score.*``), the weights of a whole model (the
    ``score.*`` of a sequence classifier, ``v_head.summary.*``, ``value_fn.*``).

    Raises:
        UserError: a file is damaged, or the head has more than one output.
    """
    for file, module in _PLACES.items():
        path = Path(folder) / file
        if not path.is_file():
            continue
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in _read(path, re.compile(module + r"\.(?P<leaf>weight|bias)")):
            parts.setdefault(name["module"], {})[name["leaf"]] = tensor
        for module_name, leaves in parts.items():
            weight = leaves.get("weight")
            if weight is None:
                continue
            if weight.dim() != 2 or weight.shape[0] != 1:
                raise UserError(
                    f"{path}: {module_name}.weight has shape {tuple(weight.shape)}; a head that scores has one output, "
                    "[1, hidden size]: train a classifier with num_labels 1."
                )
            skips = _skips(path) if module_name == "score" or path.name == FILE else None
            yield FoundHead(path=path, module=module_name, weight=weight, bias=leaves.get("bias"), skips=skips)


def no_head(folder: str | Path, what: str = "score") -> UserError:
    """That ``folder`` has none, what was looked for, and what to do."""
    files = ", ".join(name for name in _PLACES if not name.endswith(".index.json"))
    return UserError(
        f"{folder} has no {what} head: none of {files} in it holds one (v_head.summary, score or value_fn). "
        "Point to the output folder of a reward stage; if the head was left behind when the folder was "
        "copied, copy value_head.safetensors too."
    )


def _filled(weight: Tensor, bias: Tensor, kind: Kind) -> ScalarHead:
    with torch.no_grad():
        head = ScalarHead(weight.shape[1], "value")
        if kind == "score":
            head = ScalarHead(weight.shape[1], "score", generator=torch.Generator())
        head.weight.copy_(weight.float())
        head.bias.copy_(bias.float().reshape(1))
    return head


def _skips(path: Path) -> int | None:
    """The padding token beside a classifier's head; of a head of ours, what it was saved with.

    An adapter does not say what its classifier padded with, but the tokenizer saved with it does.
    """
    folder = path.parent
    if path.name == FILE:
        with safe_open(path, framework="pt") as file:
            saved = (file.metadata() or {}).get("skips", "")
        return int(saved) if saved.isdigit() else None
    if not path.name.startswith("adapter"):
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        found = config.get("pad_token_id", (config.get("text_config") or {}).get("pad_token_id"))
        return found if isinstance(found, int) else None
    settings, tokenizer = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "tokenizer.json")
    )
    pad = settings.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    listed = settings.get("added_tokens_decoder", {}).items()
    known = [*tokenizer.get("added_tokens", ()), *({**token, "id": int(number)} for number, token in listed)]
    return next((int(token["id"]) for token in known if pad is not None and token.get("content") == pad), None)


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, left on the disk until they are used; no code in it is run.

    Raises:
        UserError: it is damaged, or holds anything else.
    """
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and all(isinstance(tensor, Tensor) for tensor in state.values()):
            return state
        problem = f"it holds {type(state).__name__}, not named tensors"
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        problem = first_line(error)
    raise UserError(
        f"{path} is damaged or holds more than tensors, which only running code from it could read ({problem}): copy "
        "it again, or, where you trust it, load it with torch.load(..., weights_only=False) once and write its "
        f"state_dict with safetensors.torch.save_file as {path.stem}.safetensors."
    )


def _read(path: Path, wanted: re.Pattern[str]) -> list[tuple[re.Match[str], Tensor]]:
    """The tensors in ``path`` whose names match."""

    def matching(names: Iterable[str]) -> list[re.Match[str]]:
        return [match for name in names if (match := wanted.fullmatch(name))]

    if path.suffix == ".bin":
        state = read_bin(path)
        return [(match, state[match[0]]) for match in matching(state)]
    try:
        if path.name.endswith(".index.json"):
            shards = read_json(path).get("weight_map", {})
            files = dict.fromkeys(path.parent / shards[match[0]] for match in matching(shards))
            return [pair for file in files for pair in _read(file, wanted)]
        with safe_open(path, framework="pt") as file:
            return [(match, file.get_tensor(match[0])) for match in matching(file.keys())]
    except (SafetensorError, OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged or incomplete ({first_line(error)}). Copy it again.") from error
