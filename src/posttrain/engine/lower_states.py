"""What the frozen lower layers say of a batch's tokens, computed once for all roles and epochs that go on from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.engine.numbered import Numbered
from posttrain.engine.processes import Processes
from posttrain.models.packing import packed
from posttrain.models.roles import Roles
from posttrain.models.split import KeptStates, LowerPart, RowStates
from posttrain.types import Batch, Role


@dataclass(frozen=True)
class PieceStates:
    """The states of one micro-batch.

    Attributes:
        index: [b, t] rows of the tables, by token.
        tables: part -> [n, D].
        num_tokens: n, those that several rows share counted once.
    """

    index: Tensor
    tables: Mapping[LowerPart, Tensor]
    num_tokens: int


def lower_parts(roles: Roles, trained: Iterable[Role]) -> dict[LowerPart, Role]:
    """The lower parts that are worth keeping the states of, those beneath roles that train, each with such a role."""
    parts: dict[LowerPart, Role] = {}
    for role in trained:
        part = roles.lower_part(role)
        if part is not None:
            parts.setdefault(part, role)
    return parts


def piece_states(roles: Roles, parts: Mapping[LowerPart, Role], piece: Batch) -> PieceStates:
    """Compute the states of a micro-batch."""
    plan = packed(piece)
    tables = {part: roles.lower_states(role, plan) for part, role in parts.items()}
    return PieceStates(plan.index, tables, plan.num_tokens)


def row_states(
    parts: Iterable[LowerPart], batch: Batch, own: Sequence[tuple[Numbered, PieceStates]], processes: Processes
) -> tuple[RowStates, ...]:
    """The states of all rows of a batch, as ``Batch.lower_states`` holds them; every process holds them all.

    Args:
        parts: that there are tables of.
        batch: the whole one.
        own: this process's micro-batches of it.
        processes: that share the run.
    """
    counts = processes.gather(sum(found.num_tokens for _, found in own))
    first = start = sum(counts[: processes.rank])
    places = torch.zeros(batch.input_ids.shape, dtype=torch.int64, device=batch.input_ids.device)
    for piece, found in own:
        places[piece.rows_of, : found.index.shape[1]] = found.index + start
        start += found.num_tokens
    places = processes.sum(places)
    kept = {}
    for part in parts:
        states = [found.tables[part] for _, found in own]
        kept[part] = torch.cat(states) if processes.size == 1 else _of_all(part, states, first, sum(counts), processes)
    whole = KeptStates(kept)
    return tuple(RowStates(whole, row[:length]) for row, length in zip(places, batch.lengths.tolist(), strict=True))


def _of_all(part: LowerPart, own: Sequence[Tensor], first: int, count: int, processes: Processes) -> Tensor:
    """[N, D] the states of all processes, of which this one's begin at row ``first``."""
    model = part.model
    width = int(model.config.get_text_config().hidden_size)
    table = torch.zeros(count, width, dtype=torch.float32, device=model.device)
    for states in own:
        table[first : first + len(states)] = states
        first += len(states)
    return processes.sum(table).to(model.dtype)
