"""The prompts of an own loop, a step's worth at a time, in an order that a resumed loop goes on in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from posttrain.data.batches import epoch_order
from posttrain.train.given_rows import GivenRows


class PromptBatches:
    """Iterating gives the batches that are left of the pass under way, each a mapping of columns.

    The place follows from the steps that the trainer has done, one for each batch. Rows that do not fill a batch are
    left out of a pass; which ones differs from pass to pass.
    """

    def __init__(self, rows: GivenRows, size: int, *, seed: int, steps_done: Callable[[], int]) -> None:
        """Take the rows.

        Args:
            rows: of prompts, with any further columns.
            size: rows of a batch; of fewer rows than that, all make one.
            seed: of their order.
            steps_done: of the trainer.
        """
        self._columns = rows.columns()
        self._count = len(next(iter(self._columns.values())))
        self._size, self._seed, self._steps_done = min(size, self._count), seed, steps_done

    def __len__(self) -> int:
        """Batches of a whole pass."""
        return self._count // self._size

    def __iter__(self) -> Iterator[dict[str, list[Any]]]:
        epoch, place = divmod(self._steps_done(), len(self))
        order = epoch_order(self._count, seed=self._seed, epoch=epoch)
        for number in range(place, len(self)):
            chosen = order[number * self._size : (number + 1) * self._size]
            yield {name: [values[row] for row in chosen] for name, values in self._columns.items()}
