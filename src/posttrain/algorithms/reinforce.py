"""REINFORCE++: plain policy gradient, normalised over the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.algorithms.clipped import ClippedPolicy
from posttrain.functional import discounted_returns, group_relative, whiten
from posttrain.types import AlgorithmState, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class Reinforce(ClippedPolicy):
    """Raise tokens after which more reward came than on average over the batch; no critic.

        Â_t = Σ_{l≥t} γ^{l−t} r_l, r_t = [last] score − β KL_t, whitened over every token of the batch
        score ← score − mean of its group                                       baseline = "group"

    Paper: Hu et al., 2025, REINFORCE++ and REINFORCE++-baseline (arXiv:2501.03262). The second charges the KL in
    the loss (``kl_in``), by k2, where it has the right gradient.

    Attributes:
        baseline: "batch" or "group". gamma: γ.
    """

    baseline: Literal["batch", "group"] = "batch"
    gamma: float = 1.0

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Fill ``advantages`` [B, T], mean 0 and variance 1 over the experience; move β and the statistics on."""
        mask = batch.loss_mask
        scores, moved = self.scores(batch, state)
        if self.baseline == "group":
            scores = group_relative(scores, self.group_size, scale_by_std=False)
        advantages = discounted_returns(self.token_rewards(scores, batch, state), mask, gamma=self.gamma)
        return batch.with_columns(advantages=whiten(advantages, mask)), self.moved_on(moved, batch)
