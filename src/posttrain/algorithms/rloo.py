"""REINFORCE with the other completions of the same prompt as the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.algorithms.clipped import ClippedPolicy
from posttrain.algorithms.shaped import over_tokens
from posttrain.functional import leave_one_out, whiten
from posttrain.types import AlgorithmState, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class RLOO(ClippedPolicy):
    """Raise completions that did better than their siblings; no critic.

        r_i = score_i − β Σ_t KL_t        Â_i = r_i − 1/(G−1) Σ_{j≠i} r_j        every token of y_i gets Â_i

    Paper: Ahmadian et al., 2024, eq. 7 (arXiv:2402.14740). The paper treats a completion as one action: that is
    importance = "completion" with loss_average = "sequence". By default its tokens are weighed and clipped one by one,
    which points the same way at the first step on an experience.

    Attributes:
        group_size: G, at least 2. whiten_advantages: mean 0 and variance 1 over the experience.
    """

    group_size: int = 4
    whiten_advantages: bool = False

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Fill ``advantages`` [B, T]; move β and the reward statistics on."""
        scores, moved = self.scores(batch, state)
        advantages = leave_one_out(self.sequence_rewards(scores, batch, state), self.group_size)  # [B]
        filled = over_tokens(advantages, batch.loss_mask)
        if self.whiten_advantages:
            filled = whiten(filled, batch.loss_mask)
        return batch.with_columns(advantages=filled), self.moved_on(moved, batch)
