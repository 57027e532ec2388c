"""Several datasets as one: after each other, or taking turns."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, cycle
from typing import Generic, TypeVar

from posttrain.errors import UserError

Item = TypeVar("Item")


def mixed(
    sources: Sequence[Iterable[Item]],
    strategy: str = "concat",
    probs: Sequence[float] = (),
    *,
    seed: int = 0,
    names: Sequence[str] = (),
) -> Iterator[Item]:
    """The rows of several datasets in the order in which a run reads them, by LLaMA-Factory's names.

    ``concat``: one after the other. ``interleave_under``: in turns, until the first of them has no row left.
    ``interleave_over``: in turns, until each has given all its rows; those that end early begin again.
    ``interleave_once``: in turns, each row once; those that end early are passed over.

    Args:
        sources: each can be iterated again. strategy: as above.
        probs: chance of each to be next; without them they take turns in their order.
        seed: of the draws. names: of the sources, for messages.

    Raises:
        UserError: a dataset that is to take turns has no row.
    """
    if strategy == "concat" or len(sources) == 1:
        yield from chain.from_iterable(sources)
        return
    taken = [_Source(source, names[i] if names else str(i + 1)) for i, source in enumerate(sources)]
    number = len(taken)
    ends = any if strategy == "interleave_under" else all
    for turn, chosen in enumerate(_turns(number, probs, seed)):
        # without chances every round is finished
        if (probs or turn % number == 0 or strategy == "interleave_once") and ends(s.is_used_up for s in taken):
            return
        if strategy != "interleave_once" or not taken[chosen].is_used_up:
            yield taken[chosen].next()


def _turns(number: int, probs: Sequence[float], seed: int) -> Iterator[int]:
    if not probs:
        yield from cycle(range(number))
    chance = random.Random(f"mix:{seed}")
    while True:
        yield from chance.choices(range(number), weights=probs, k=1000)


class _Source(Generic[Item]):
    """A dataset that begins again at its end.

    Attributes:
        is_used_up: every row has been taken at least once.
    """

    def __init__(self, rows: Iterable[Item], name: str) -> None:
        self._rows, self.is_used_up = rows, False
        self._iterator = iter(rows)
        try:
            self._following = next(self._iterator)
        except StopIteration:
            raise UserError(f"dataset {name!r} has no usable row to mix with the others") from None

    def next(self) -> Item:
        """The next row; one is read ahead, to know the last one when it is taken."""
        row = self._following
        try:
            self._following = next(self._iterator)
        except StopIteration:
            self.is_used_up = True
            self._iterator = iter(self._rows)
            self._following = next(self._iterator)
        return row
