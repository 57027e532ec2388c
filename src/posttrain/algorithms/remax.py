"""REINFORCE with the greedy completion's reward as the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.algorithms.clipped import ClippedPolicy
from posttrain.algorithms.columns import column
from posttrain.functional import discounted_returns
from posttrain.types import AlgorithmState, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class ReMax(ClippedPolicy):
    """Raise completions that did better than what the policy says when it does not try anything.

        Â_t = Σ_{l≥t} r_l − score(greedy completion of the prompt),  r_t = [last] score − β KL_t

    Paper: Li et al., 2023, eq. 5 (arXiv:2310.10505). One greedy completion of each prompt is sampled and scored on top
    of the experience; it never trains. The paper takes one step on fresh samples, where the clipped ratio is 1.
    """

    greedy_baseline: ClassVar[bool] = True

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Fill ``advantages`` [B, T]; move β and the reward statistics on."""
        scores, moved = self.scores(batch, state)
        baselines = self.scaled(column(batch, "baseline_rewards"), moved)
        rewards = self.token_rewards(scores - baselines, batch, state)
        advantages = discounted_returns(rewards, batch.loss_mask, gamma=1.0)
        return batch.with_columns(advantages=advantages), self.moved_on(moved, batch)
