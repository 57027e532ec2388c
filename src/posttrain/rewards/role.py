"""The reward model as a role on the shared backbone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from posttrain.types import Batch, RolloutBatch


class RoleReward:
    """What the reward role says of prompt and completion, read at the last real token."""

    def __init__(self, scores: Callable[[Batch], Tensor]) -> None:
        """Wrap ``scores``: batch -> [B], the engine's forward in the reward role."""
        self._scores = scores

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] raw scores."""
        return self._scores(batch).float()
