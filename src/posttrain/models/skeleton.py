"""A model without its weights: sizes and shapes of everything, for planning, from config.json alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from posttrain.errors import UserError
from posttrain.models import attention
from posttrain.models.activations import fuse_activations
from posttrain.models.attention_tiles import tile_rows
from posttrain.models.load import first_line, quiet, read_json

_META = torch.device("meta")


def skeleton(folder: str | Path, *, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a folder on the meta device: every module and shape, no memory; frozen, attention packed.

    Raises:
        UserError: the folder has no readable config.json, or it is not of a causal language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    place = Path(folder).expanduser()
    if not (place / "config.json").is_file():
        raise UserError(f"{place} is not a model folder: it has no config.json.")
    read_json(place / "config.json")
    try:
        with quiet(), _META:
            config = AutoConfig.from_pretrained(str(place), trust_remote_code=trust_remote_code, local_files_only=True)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # configuration and architecture fail with classes of their own
        raise UserError(f"{place} cannot be read as a causal language model: {first_line(error)}") from error
    attention.register()
    model.set_attn_implementation(attention.NAME)
    model.requires_grad_(False)
    return fuse_activations(model)


def saved_bytes(model: PreTrainedModel, num_tokens: int, longest: int | None = None) -> int:
    """What the trunk keeps for its backward pass over packed rows of this many tokens together.

    The forward runs on the meta device, so that every architecture tells its own size; parameters are not counted.

    Args:
        model: a skeleton, ``requires_grad`` as in training.
        num_tokens: of all rows.
        longest: of the longest row; counts where attention has dropout, and keeps what it dropped.

    Returns:
        Bytes of all tensors that autograd holds, each storage once; without activation checkpointing.
    """
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage
        return tensor

    ids = torch.zeros(1, num_tokens, dtype=torch.long, device=_META)
    training = model.training
    model.train()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(hold, _same):
            # a mask, though nothing reads it: without one transformers looks into the positions, which have no values
            model.get_decoder()(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, plan=_Sizes(longest or num_tokens)
            )
    finally:
        model.train(training)
    return sum(storage.nbytes() for storage in held.values())


def num_elements(model: nn.Module, wanted: Callable[[str, nn.Parameter], bool] = lambda name, p: True) -> int:
    """How many numbers the parameters hold that are wanted by name; shared ones count once."""
    return sum(p.numel() for name, p in model.named_parameters() if wanted(name, p))


def num_linear(model: PreTrainedModel) -> tuple[int, int]:
    """Numbers of a model that wears nothing yet, and those of them in linear layers other than its output head."""
    head = model.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, kinds) and m is not head)
    return num_elements(model), linear


def stored_elements(folder: str | Path) -> int:
    """How many numbers the weight files of a folder hold, from the headers of its safetensors files.

    Raises:
        UserError: there is none, or one is damaged.
    """
    files = sorted(Path(folder).expanduser().glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no safetensors files, so the size of its model is not known.")
    total = 0
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({first_line(error)}).") from error
    return total


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _Sizes:
    """An attention plan that keeps what packed attention keeps, and attends to nothing.

    Args:
        longest: tokens that a token may look at.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        dropout: float,
        **_: Any,
    ) -> Tensor:
        """See ``AttentionPlan.attend``."""
        # the inputs alone, and with dropout one byte for each weight: whether it stays
        heads, tokens = query.shape[1:3]
        rows = tile_rows(heads, self.longest)
        ends = [*range(rows, self.longest, rows), self.longest]
        area = sum(end * (end - begin) for begin, end in zip([0, *ends], ends, strict=False)) if dropout else 0
        kept = torch.empty(heads * area * tokens // self.longest, dtype=torch.bool, device=query.device)
        out: Tensor = _KeepsAll.apply(query, key, value, kept)  # type: ignore[no-untyped-call]
        return out


class _KeepsAll(torch.autograd.Function):
    """Saves its inputs, as attention in tiles does; the others keep a little more (``models/attention_backends``)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(query, *others)
        return query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError("a skeleton has no gradients")
