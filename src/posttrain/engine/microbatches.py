"""Cut a minibatch into micro-batches by the tokens they cost, rows that share a prefix kept together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from posttrain.types import Batch

B = TypeVar("B", bound=Batch)

# On two CPU cores 1024 is 7 % faster and takes a quarter more memory, 256 9 % slower (benchmarks/cpu_settings.py).
DEFAULT_MAX_TOKENS = 512


def microbatches(batch: B, max_tokens: int, *, together: int = 1) -> list[B]:
    """Micro-batches of at most ``max_tokens`` packed tokens each; a longer unit stands alone.

    Rows are sorted by their token ids, so that equal prefixes become neighbours and the cut is the same whatever
    the order of rows was. The objective does not depend on the cut: losses are divided by one count over the whole
    minibatch.

    Args:
        batch: a multiple of ``together`` rows. max_tokens: the limit.
        together: neighbouring rows that stay together, such as the two of a pair.
    """
    lengths = batch.lengths.tolist()
    rows = [tuple(ids[:n]) for ids, n in zip(batch.input_ids.tolist(), lengths, strict=True)]
    units = sorted(batch.units(together), key=lambda unit: rows[unit.start : unit.stop])
    cuts: list[list[int]] = []
    cost = max_tokens + 1
    previous: tuple[int, ...] = ()
    for members in units:
        first = members.start
        added = sum(len(rows[i]) - _shared(rows[i], previous if i == first else rows[i - 1]) for i in members)
        if cost + added > max_tokens:
            cuts.append([])
            cost, added = 0, sum(len(rows[i]) - (_shared(rows[i], rows[i - 1]) if i > first else 0) for i in members)
        cuts[-1] += members
        cost += added
        previous = rows[first]
    device = batch.input_ids.device
    return [batch.rows(torch.tensor(cut, device=device)) for cut in cuts]


def dealt(costs: Sequence[int], loads: list[int]) -> list[int]:
    """Which process does each piece of work: the costliest first, each to the process with the least to do.

    Args:
        costs: of each piece, known to every process.
        loads: what each process has to do already; what is dealt is added.

    Returns:
        A rank for each piece.
    """
    owners = [0] * len(costs)
    for number in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += costs[number]
    return owners


def _shared(row: tuple[int, ...], other: tuple[int, ...]) -> int:
    count = 0
    for a, b in zip(row, other, strict=False):
        if a != b:
            break
        count += 1
    return count
