"""What a minibatch's micro-batches add up to: sums of metrics, and the counts that they are divided by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from posttrain.types import Batch


@dataclass
class Tally:
    """Sums of metrics and the count they are averages over, kept on the device until read."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, total: Tensor, count: float) -> None:
        """Add a sum over ``count`` units."""
        self.sums[name] = self.sums.get(name, torch.zeros((), device=total.device)) + total.detach()
        self.counts[name] = self.counts.get(name, 0.0) + count

    def join(self, other: Tally) -> None:
        """Add what another one has added up."""
        for name, total in other.sums.items():
            self.add(name, total, other.counts[name])

    def means(self) -> dict[str, float]:
        """Name -> sum / count."""
        return {name: float(total) / max(self.counts[name], 1e-12) for name, total in self.sums.items()}

    def plain(self) -> dict[str, list[float]]:
        """Name -> [sum, count], as other processes are told."""
        return {name: [float(total), self.counts[name]] for name, total in self.sums.items()}

    @classmethod
    def of(cls, tallies: Iterable[Mapping[str, Any]]) -> Self:
        """The tally of all processes, from what ``plain`` gave on each."""
        whole = cls()
        for tally in tallies:
            for name, (total, count) in tally.items():
                whole.add(name, torch.tensor(total, dtype=torch.float64), count)
        return whole


def unit_counts(batch: Batch) -> dict[str, float]:
    """How many of each unit a batch holds; token 0 of a row is predicted by nothing and does not count."""
    tokens = float(batch.loss_mask[:, 1:].sum())
    return {"token": max(tokens, 1.0), "sequence": float(len(batch)), "pair": len(batch) / 2, "constant": 1.0}
