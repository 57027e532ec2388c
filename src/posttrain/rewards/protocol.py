"""The seam to every source of reward."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from posttrain.types import RolloutBatch


class Reward(Protocol):
    """Scores completions; higher is better.

    One whose attribute ``is_apart`` is True needs no model of the run: it is asked in a thread of its own, while the
    engine asks its roles. See ``posttrain.rewards.apart``.
    """

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """One number for each sequence.

        Args:
            batch: rollouts, the sampler's columns filled.

        Returns:
            [B] float32.
        """
        ...
