"""Several reward models as one, and what they do not agree on taken off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from posttrain.types import Batch, RolloutBatch


class EnsembleReward:
    """The mean of several reward models, less a part of their deviation where they disagree.

        r = mean_k s_k − λ std_k s_k

    A policy that exploits a weakness of one reward model seldom pleases the others as much: their disagreement is the
    sign of it. Paper: Coste et al., 2023, uncertainty-weighted optimisation with λ times the deviation instead of the
    variance (arXiv:2310.02743).

    Attributes:
        last: name -> [B] of the last call: each member's scores, and ``disagreement``, their deviation.
    """

    def __init__(self, members: Sequence[Callable[[Batch], Tensor]], *, disagreement_coef: float = 0.0) -> None:
        """Take the members.

        Args:
            members: batch -> [B], at least two. disagreement_coef: λ.
        """
        self._members, self._coef = members, disagreement_coef
        self.last: Mapping[str, Tensor] = {}

    def __call__(self, batch: RolloutBatch) -> Tensor:
        """[B] rewards."""
        scores = torch.stack([member(batch).float() for member in self._members])  # [K, B]
        disagreement = scores.std(dim=0, correction=0)
        names = [f"reward_model_{number}" for number in range(1, len(scores) + 1)]
        self.last = {**dict(zip(names, scores, strict=True)), "disagreement": disagreement}
        return scores.mean(dim=0) - self._coef * disagreement
