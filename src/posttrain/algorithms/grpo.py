"""Group-relative policy optimisation and its relatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from posttrain.algorithms.clipped import ClippedPolicy
from posttrain.algorithms.shaped import over_tokens
from posttrain.functional import KLKind, group_relative
from posttrain.types import AlgorithmState, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class GRPO(ClippedPolicy):
    """Raise completions that did better than the mean of their group, in units of the group's spread.

        Â_i = (r_i − mean(r)) / (std(r) + 1e-4)        L = 1/B Σ_i 1/|y_i| Σ_t (L_clip + β KL_k3)

    Paper: Shao et al., 2024, eq. 3 and 4 (arXiv:2402.03300). Its relatives are settings:

        Dr. GRPO   scale_rewards = "none", loss_average = "budget"          Liu et al., 2025 (arXiv:2503.20783)
        DAPO       loss_average = "token", clip_high = 0.28, kl_coef = 0,   Yu et al., 2025 (arXiv:2503.14476)
                   dynamic sampling in the loop
        GSPO       importance = "sequence", clip = 3e-4, clip_high = 4e-4   Zheng et al., 2025 (arXiv:2507.18071)
        CISPO      policy_loss = "cispo", loss_average = "token"            MiniMax, 2025 (arXiv:2506.13585)

    Attributes:
        group_size: completions of one prompt, at least 2. kl_in, kl_estimator: in the loss, by k3, as in the paper.
        scale_rewards: "group": by the group's deviation; "batch": by that of all rewards; "none".
    """

    group_size: int = 8
    kl_in: Literal["reward", "loss"] = "loss"
    kl_estimator: KLKind = "k3"
    loss_average: Literal["token", "sequence", "budget"] = "sequence"
    scale_rewards: Literal["group", "batch", "none"] = "group"

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Fill ``advantages`` [B, T]; every group's sum to 0."""
        scores, moved = self.scores(batch, state)
        rewards = self.sequence_rewards(scores, batch, state)
        advantages = group_relative(rewards, self.group_size, scale_by_std=self.scale_rewards == "group")  # [B]
        if self.scale_rewards == "batch":
            advantages = advantages / (torch.std(rewards) + 1e-4)
        filled = over_tokens(advantages, batch.loss_mask)
        return batch.with_columns(advantages=filled), self.moved_on(moved, batch)
