"""Cut a minibatch into micro-batches by what they cost, rows of one prompt kept together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch

from posttrain.models.packing import SHORTEST_PREFIX
from posttrain.types import Batch

B = TypeVar("B", bound=Batch)
Row = tuple[int, ...]

# On two CPU cores 1024 is 7 % faster and takes a quarter more memory, 256 9 % slower (benchmarks/cpu_settings.py).
DEFAULT_MAX_TOKENS = 512


def microbatches(batch: B, max_tokens: int, *, together: int = 1, padded: bool = False) -> list[B]:
    """Micro-batches that cost at most ``max_tokens`` each; a longer unit stands alone.

    Packed, rows that share their prompt stay neighbours and pay for it once; such groups are put together, the largest
    first, each into the fullest micro-batch that has room. Padded, rows of like length come together and cost rows x
    longest. The cut is the same whatever the order of rows was, and the objective does not depend on it: losses are
    divided by one count over the whole minibatch.

    Args:
        batch: a multiple of ``together`` rows. max_tokens: the limit.
        together: neighbouring rows that stay together, such as the two of a pair.
        padded: whether padding is computed too, for models that cannot run packed.
    """
    units = _units(batch, together)
    cuts = _padded_cuts(units, max_tokens) if padded else _packed_cuts(units, max_tokens)
    device = batch.input_ids.device
    return [batch.rows(torch.tensor([i for unit in cut for i in unit.members], device=device)) for cut in cuts]


def cost(batch: Batch, *, together: int = 1, padded: bool = False) -> int:
    """Tokens of one micro-batch of all these rows, as ``microbatches`` counts them."""
    units = _units(batch, together)
    if padded:
        return len(batch) * max(unit.longest for unit in units)
    alone = _common(units)
    return _Bin.of(_families(units), alone).cost


@dataclass(frozen=True)
class _Unit:
    """Rows that are never cut apart.

    Attributes:
        members: their numbers. rows: their tokens. prompt: tokens of the first row before those that train.
    """

    members: range
    rows: tuple[Row, ...]
    prompt: int

    @property
    def longest(self) -> int:
        return max(map(len, self.rows))


@dataclass(frozen=True)
class _Chunk:
    """Units of one prompt, or of one beginning, that are put into a micro-batch as a whole.

    Attributes:
        units: in the order of their tokens. shared: tokens that all of their rows begin with.
    """

    units: tuple[_Unit, ...]
    shared: int

    @classmethod
    def of(cls, units: Sequence[_Unit]) -> _Chunk:
        rows = [row for unit in units for row in unit.rows]
        shared = min((_shared(a, b) for a, b in pairwise(rows)), default=0)
        return cls(tuple(units), shared if shared >= SHORTEST_PREFIX else 0)

    @property
    def is_row(self) -> bool:
        """Whether this is one row alone, which may share its beginning with other such rows."""
        return len(self.units) == 1 and len(self.units[0].rows) == 1

    @property
    def cost(self) -> int:
        """Tokens of it by itself."""
        lengths = [len(row) for unit in self.units for row in unit.rows]
        return sum(lengths) - self.shared * (len(lengths) - 1)


class _Bin:
    """A micro-batch that is being filled.

    Args:
        alone: tokens that all single rows of the minibatch begin with: counted once for those in here.
    """

    def __init__(self, alone: int) -> None:
        self.chunks: list[_Chunk] = []
        self.cost = 0
        self._alone, self._has_row = alone, False

    @classmethod
    def of(cls, chunks: Sequence[_Chunk], alone: int) -> _Bin:
        whole = cls(alone)
        for chunk in chunks:
            whole.add(chunk)
        return whole

    def added(self, chunk: _Chunk) -> int:
        """Tokens that the chunk would cost in here."""
        return chunk.cost - (self._alone if self._has_row and chunk.is_row else 0)

    def add(self, chunk: _Chunk) -> None:
        """Put it in."""
        self.cost += self.added(chunk)
        self._has_row |= chunk.is_row
        self.chunks.append(chunk)

    @property
    def units(self) -> list[_Unit]:
        """All of its units: single rows as neighbours, then group after group."""
        chunks = sorted(self.chunks, key=lambda chunk: (not chunk.is_row, chunk.units[0].rows))
        return [unit for chunk in chunks for unit in chunk.units]


def _packed_cuts(units: Sequence[_Unit], max_tokens: int) -> list[list[_Unit]]:
    """Best fit, decreasing."""
    chunks = [part for family in _families(units) for part in _parts(family, max_tokens)]
    alone, bins = _common(units), list[_Bin]()
    for chunk in sorted(chunks, key=lambda chunk: (-chunk.cost, chunk.units[0].rows)):
        fits = [b for b in bins if b.cost + b.added(chunk) <= max_tokens]
        if not fits:
            fits = [_Bin(alone)]
            bins += fits
        max(fits, key=lambda b: b.cost + b.added(chunk)).add(chunk)
    return [b.units for b in bins]


def _padded_cuts(units: Sequence[_Unit], max_tokens: int) -> list[list[_Unit]]:
    """From the longest on, as many as fit at the width of the first."""
    cuts: list[list[_Unit]] = []
    width = count = 0
    for unit in sorted(units, key=lambda unit: (-unit.longest, unit.rows)):
        count += len(unit.rows)
        if not cuts or width * count > max_tokens:
            cuts.append([])
            width, count = unit.longest, len(unit.rows)
        cuts[-1].append(unit)
    return cuts


def _units(batch: Batch, together: int) -> list[_Unit]:
    """The units of a batch, sorted by their tokens."""
    lengths, trains = batch.lengths.tolist(), batch.loss_mask.long()
    rows = [tuple(ids[:n]) for ids, n in zip(batch.input_ids.tolist(), lengths, strict=True)]
    prompts = torch.where(trains.any(dim=1), trains.argmax(dim=1), batch.lengths).tolist()
    found = [
        _Unit(members, tuple(rows[members.start : members.stop]), prompts[members.start])
        for members in batch.units(together)
    ]
    return sorted(found, key=_by_tokens)


def _by_tokens(unit: _Unit) -> tuple[Row, ...]:
    return unit.rows


def _families(units: Sequence[_Unit]) -> list[_Chunk]:
    """Sorted units into runs of those that have one prompt."""
    runs: list[list[_Unit]] = []
    for unit in units:
        before = runs[-1][-1] if runs else None
        if before is not None and _shared(before.rows[0], unit.rows[0]) >= max(
            SHORTEST_PREFIX, before.prompt, unit.prompt
        ):
            runs[-1].append(unit)
        else:
            runs.append([unit])
    return [_Chunk.of(run) for run in runs]


def _parts(family: _Chunk, max_tokens: int) -> Iterator[_Chunk]:
    """A family that is too large, in as few parts as its order allows."""
    if family.cost <= max_tokens or len(family.units) == 1:
        yield family
        return
    part: list[_Unit] = []
    for unit in family.units:
        if part and _Chunk.of([*part, unit]).cost > max_tokens:
            yield _Chunk.of(part)
            part = []
        part.append(unit)
    yield _Chunk.of(part)


def _common(units: Sequence[_Unit]) -> int:
    """Tokens that all units begin with, as with one system message; 0 where that is not worth sharing."""
    shared = _shared(units[0].rows[0], units[-1].rows[0]) if len(units) > 1 else 0
    return shared if shared >= SHORTEST_PREFIX else 0


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


def _shared(row: Row, other: Row) -> int:
    count = 0
    for a, b in zip(row, other, strict=False):
        if a != b:
            break
        count += 1
    return count
