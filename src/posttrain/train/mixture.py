"""Pretraining rows mixed into every update of an online stage, so that the policy does not forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.algorithms import PretrainingLoss
from posttrain.data.batches import collate, epoch_order
from posttrain.data.template import EncodedRow
from posttrain.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Rows in an endless shuffled stream, some of them in every optimizer step.

    Attributes:
        rows: at least one. size: rows of one step. seed: of the order. pad_id: of batches.
    """

    rows: Sequence[EncodedRow]
    size: int
    seed: int
    pad_id: int
    algorithm: PretrainingLoss

    def accumulate(self, engine: Engine) -> None:
        """Add the gradients of the rows that belong to the engine's step."""
        count = len(self.rows)
        order: tuple[int, list[int]] = (-1, [])
        chosen = []
        for position in range(engine.step * self.size, (engine.step + 1) * self.size):
            epoch, place = divmod(position, count)
            if order[0] != epoch:
                order = (epoch, epoch_order(count, seed=self.seed, epoch=epoch))
            chosen.append(self.rows[order[1][place]])
        engine.accumulate(self.algorithm, collate(chosen, self.pad_id), temperature=1.0)
