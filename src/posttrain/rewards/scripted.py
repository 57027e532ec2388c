"""A reward given as a plain function of one completion, for tests and experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from posttrain.types import RolloutBatch


class ScriptedReward:
    """Scores each completion's token ids by a function."""

    def __init__(self, score: Callable[[Sequence[int]], float]) -> None:
        """``score``: the completion's token ids, its end-of-turn token included, to a number."""
        self._score = score

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] scores."""
        rows = zip(batch.input_ids, batch.loss_mask, strict=True)
        scores = [self._score(ids[mask].tolist()) for ids, mask in rows]
        return torch.tensor(scores, dtype=torch.float32, device=batch.input_ids.device)
