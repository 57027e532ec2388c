"""The micro-batches of each process: cut by tokens, dealt out, and cut finer and tried again where memory runs out."""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from posttrain.engine.microbatches import cost, dealt, microbatches
from posttrain.engine.processes import Processes
from posttrain.errors import RunError, is_out_of_memory
from posttrain.types import Batch

B = TypeVar("B", bound=Batch)
T = TypeVar("T")


class TooLargeError(RunError):
    """Memory that runs out where nothing is left to be cut."""


@dataclass(frozen=True)
class Piece(Generic[B]):
    """A micro-batch of this process.

    Attributes:
        rows: its table. number: its place in the step, from which dropout is seeded; those that a piece was cut into
            afterwards have the piece's number and a ``part`` each.
    """

    rows: B
    number: int
    part: int = 0


class Shares:
    """How batches are cut and dealt out.

    Attributes:
        max_tokens: what a micro-batch may cost, the same in all processes: by it work is dealt out.
        own_tokens: the same in this process, smaller where memory ran out since all agreed.
        announce: told when micro-batches get smaller.
    """

    def __init__(self, max_tokens: int, processes: Processes) -> None:
        """Begin with this limit."""
        self.max_tokens = self.own_tokens = max_tokens
        self.announce: Callable[[str], None] = warnings.warn
        self._processes = processes

    def reset(self, max_tokens: int) -> None:
        """Take the limit of a checkpoint."""
        self.max_tokens = self.own_tokens = max_tokens

    def own(
        self,
        batch: B,
        *,
        together: int = 1,
        padded: bool = False,
        loads: list[int] | None = None,
        max_tokens: int | None = None,
        first: int = 0,
    ) -> tuple[list[Piece[B]], int]:
        """What this process computes of a batch, which all processes hold.

        Args:
            batch: of any size. together, padded: see ``microbatches``.
            loads: what each process has to do already; see ``dealt``.
            max_tokens: by which the work is dealt out; None is the present limit. Alone, it is the present one anyway.
            first: number of the first micro-batch.

        Returns:
            (its micro-batches, how many there are in all processes).
        """
        if self._processes.size == 1:
            whole = microbatches(batch, self.own_tokens, together=together, padded=padded)
            return [Piece(rows, number) for number, rows in enumerate(whole, start=first)], len(whole)
        whole = microbatches(batch, max_tokens or self.max_tokens, together=together, padded=padded)
        costs = [piece.input_ids.numel() if padded else int(piece.attention_mask.sum()) for piece in whole]
        owners = dealt(costs, loads or [0] * self._processes.size)
        mine = [
            Piece(part, number, place)
            for number, (rows, owner) in enumerate(zip(whole, owners, strict=True), start=first)
            if owner == self._processes.rank
            for place, part in enumerate(microbatches(rows, self.own_tokens, together=together, padded=padded))
        ]
        return mine, len(whole)

    def answers(
        self, pieces: Iterable[Piece[B]], compute: Callable[[B], T], *, together: int = 1, padded: bool = False
    ) -> Iterator[tuple[B, T]]:
        """Micro-batches with what ``compute`` finds for each, which leaves nothing behind when it fails.

        Raises:
            TooLargeError: see ``lower``.
        """
        waiting = deque(piece.rows for piece in pieces)
        while waiting:
            rows = waiting.popleft()
            found = attempted(lambda rows=rows: compute(rows))  # type: ignore[misc]
            if not isinstance(found, OutOfMemory):
                yield rows, found
                continue
            self.lower(rows, found, together=together, padded=padded)
            coarse = [rows, *waiting]
            waiting = deque(
                part
                for rows in coarse
                for part in microbatches(rows, self.own_tokens, together=together, padded=padded)
            )

    def lower(self, rows: Batch, why: OutOfMemory, *, together: int, padded: bool) -> None:
        """Halve the limit for good, so that ``rows``, for which memory ran out, are cut.

        Raises:
            TooLargeError: they are one unit, which cannot be.
        """
        tokens, before = cost(rows, together=together, padded=padded), self.own_tokens
        if len(rows.units(together)) == 1:
            what = "one row" if len(rows) == 1 else f"{len(rows)} rows that belong together"
            raise TooLargeError(
                f"memory ran out on {what} of {tokens} tokens, which is the least that can be computed at once "
                f"({why.message})."
            )
        self.own_tokens = min(before, tokens) // 2
        release_memory()
        self.announce(
            f"memory ran out on a micro-batch of {tokens} tokens; it is computed again in pieces of at most "
            f"{self.own_tokens}, and so is all that follows (max_tokens_per_microbatch). The objective is the same"
        )
        if self._processes.size == 1:
            self.max_tokens = self.own_tokens

    def agree(self) -> None:
        """Take the smallest limit of all processes; every one must call it."""
        if self._processes.size == 1:
            return
        smallest = min(self._processes.gather(self.own_tokens))
        if smallest < self.own_tokens:
            self.announce(
                f"memory ran out in another process of this run; micro-batches hold at most {smallest} tokens now"
            )
        self.max_tokens = self.own_tokens = smallest


@dataclass(frozen=True)
class OutOfMemory:
    """What an attempt ended with. message: the allocator's, its first line."""

    message: str


def attempted(compute: Callable[[], T]) -> T | OutOfMemory:
    """What ``compute`` returns, or that memory ran out; nothing of the attempt is held any more then."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = str(error).strip().splitlines()
        return OutOfMemory(text[0] if text else type(error).__name__)


def release_memory() -> None:
    """Give back to the system what Python, torch and the C library hold without using it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return_freed_memory()


def return_freed_memory() -> None:
    """Hand back to the system what the C library keeps of memory that was freed.

    Glibc keeps pieces below 32 MB for later: after an update of all weights that is as much as its activations took,
    and what is decoded next, kept in larger pieces, comes on top of it. Other C libraries are left alone.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
