"""A trunk in two parts: the frozen layers below, whose states are kept, and those above, which run upon them.

A token's state behind the layers that nothing trains in is the same for every role that wears the same adapters there,
and in every epoch. Of a batch that is looked at often it is computed once. The parts are cut out of any architecture in
one way: for the time of a forward the other layers are stand-ins that hand on what they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from posttrain.models.packing import Packing
from posttrain.models.work import trunk_pass
from posttrain.types import Batch


@dataclass(frozen=True)
class LowerPart:
    """The frozen layers that a role's trunk begins with; equal parts give equal states.

    Attributes:
        model: whose layers they are.
        num_layers: how many.
        worn: adapters within them.
    """

    model: PreTrainedModel
    num_layers: int
    worn: tuple[str, ...] = ()


@dataclass(frozen=True)
class KeptStates:
    """Hidden states of a batch behind its lower parts.

    Attributes:
        tables: part -> [N, D], each live token once.
    """

    tables: Mapping[LowerPart, Tensor]


@dataclass(frozen=True)
class RowStates:
    """Where the states of one sequence are; ``Batch.lower_states`` holds one for each row.

    Attributes:
        kept: of the batch that the sequence is from.
        places: [n] int64, the table's row of each of its n tokens.
    """

    kept: KeptStates
    places: Tensor


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The model's layers, and their name in it."""
    count = int(model.config.get_text_config().num_hidden_layers)
    layers = next(m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    return next(name for name, module in model.named_modules() if module is layers), layers


def num_frozen(model: PreTrainedModel, trained: Iterable[str]) -> int:
    """How many layers lie beneath everything that trains; 0 where nothing trains, or something before the layers.

    Args:
        model: the backbone. trained: names of its parameters that train.
    """
    head = model.get_output_embeddings()
    above = {id(p) for p in head.parameters()} if head is not None else set()
    above -= {id(p) for p in model.get_input_embeddings().parameters()}
    parameters = dict(model.named_parameters())
    depths = [_depth(model, name) for name in trained if id(parameters[name]) not in above]
    return min(depths, default=0)


def worn_below(model: PreTrainedModel, names: Sequence[str], num_layers: int) -> tuple[str, ...]:
    """Those of some adapters, in order, that change the model below a layer.

    Args:
        model: the backbone. names: adapters in it. num_layers: how many layers are below.
    """
    reaching = {
        part
        for key, _ in model.named_parameters()
        if ".lora_" in key and _depth(model, key) < num_layers
        for part in key.split(".")
    }
    return tuple(name for name in names if name in reaching)


def run_packed(model: PreTrainedModel, plan: Packing, *, part: str = "") -> Tensor:
    """[N, D] states behind the last layer and its norm; ``part`` tells what runs where it is not the whole."""
    size = plan.num_tokens
    with trunk_pass(model, positions=size, pairs=lambda: plan.num_computed, held=size, part=part):
        out = model.get_decoder()(input_ids=plan.input_ids, position_ids=plan.position_ids, use_cache=False, plan=plan)
    states: Tensor = out.last_hidden_state[0]
    return states


@torch.no_grad()
def lower(model: PreTrainedModel, plan: Packing, num_layers: int) -> Tensor:
    """[N, D] states behind the first layers, without gradients; the model wears what it should already."""
    _, layers = decoder_layers(model)
    stand_ins = {i: _StandIn(layers[i]) for i in range(num_layers, len(layers))}
    with _standing_in(layers, stand_ins):
        run_packed(model, plan, part=f"below {num_layers}")
    states = stand_ins[num_layers].given
    assert states is not None
    return states[0]


def upper(model: PreTrainedModel, plan: Packing, num_layers: int, states: Tensor) -> Tensor:
    """[N, D] states behind the last layer and its norm, from those behind the first layers.

    Args:
        model: wears what it should already. plan: of the tokens.
        num_layers: how many layers are behind the states, at least one.
        states: [N, D].
    """
    _, layers = decoder_layers(model)
    stand_ins = {i: _StandIn(layers[i]) for i in range(num_layers)}
    stand_ins[num_layers - 1].gives = states[None]
    with _standing_in(layers, stand_ins):
        return run_packed(model, plan, part=f"above {num_layers}")


def kept_states(batch: Batch, plan: Packing, part: LowerPart | None) -> Tensor | None:
    """[N, D] what the batch keeps of a part, in the order of a packing of it; None where it keeps nothing of it."""
    rows: tuple[RowStates, ...] = batch.lower_states
    if part is None or not rows or part not in rows[0].kept.tables:
        return None
    if any(row.kept is not rows[0].kept for row in rows):
        raise ValueError("these rows keep states of different batches")
    source = torch.zeros(plan.num_tokens, dtype=torch.int64, device=plan.index.device)
    # of a prefix that several rows share the first row's states are taken, whatever the device
    for number in range(len(rows) - 1, -1, -1):
        places = rows[number].places
        source[plan.index[number, : len(places)]] = places
    return rows[0].kept.tables[part][source]


def _depth(model: PreTrainedModel, name: str) -> int:
    """The layer that a parameter is in; 0 for those outside the layers, which may come before them."""
    prefix = f"{decoder_layers(model)[0]}."
    return int(name.removeprefix(prefix).split(".")[0]) if name.startswith(prefix) else 0


class _StandIn(nn.Module):
    """Takes the place of a layer: hands on the states, or gives others in their place.

    Attributes:
        given: the states that it was called with. gives: those that it answers with; None hands on.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.given: Tensor | None = None
        self.gives: Tensor | None = None
        self.__dict__["layer"] = layer  # past nn.Module, whose parameters would then be found here too

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        self.given = hidden_states
        return hidden_states if self.gives is None else self.gives

    def __getattr__(self, name: str) -> Any:
        """What else a decoder asks of its layers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)


@contextmanager
def _standing_in(layers: nn.ModuleList, stand_ins: Mapping[int, _StandIn]) -> Iterator[None]:
    own = {number: layers[number] for number in stand_ins}
    try:
        for number, stand_in in stand_ins.items():
            layers[number] = stand_in
        yield
    finally:
        for number, layer in own.items():
            layers[number] = layer
