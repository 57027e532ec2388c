"""Rejection sampling: fine-tune on the best of several completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from posttrain.algorithms.columns import masked_column
from posttrain.algorithms.shaped import ShapedRewards, over_tokens
from posttrain.types import AlgorithmState, LossTerm, Outputs, Role, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class RejectionSampling(ShapedRewards):
    """Sample G completions of a prompt, keep the best, imitate it; best-of-n that stays.

        y* = argmax_i score_i where score* ≥ threshold        L_t = −log π(y*_t)

    Papers: Dong et al., 2023, RAFT (arXiv:2304.06767); Touvron et al., 2023, section 3.2.3 (arXiv:2307.09288). Samples
    are drawn anew from the current policy in every iteration.

    Attributes:
        group_size: G. reward_threshold: raw score that the best must reach; None keeps it whatever it is.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)

    kl_coef: float = 0.0
    group_size: int = 4
    reward_threshold: float | None = None

    @property
    def trained_group(self) -> int:
        """One row of each prompt is kept."""
        return 1

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Choose ``trains`` [B]; ``advantages`` are 1 on what is kept, 0 on the rest."""
        scores, moved = self.scores(batch, state)
        rewards = self.sequence_rewards(scores, batch, state).reshape(-1, self.group_size)  # [P, G]
        best = torch.nn.functional.one_hot(rewards.argmax(dim=1), self.group_size).bool().reshape(-1)  # [B]
        if self.reward_threshold is not None and batch.rewards is not None:
            best = best & (batch.rewards >= self.reward_threshold)
        filled = over_tokens(best.to(batch.logprobs.dtype), batch.loss_mask)
        return batch.with_columns(advantages=filled, trains=best), self.moved_on(moved, batch)

    def loss(self, role: Role, out: Outputs, batch: RolloutBatch) -> LossTerm:
        """Negative log-likelihood [B, T] of what was kept."""
        metrics = {}
        if out.entropy is not None:
            metrics["entropy"] = masked_column(out, "entropy", batch.loss_mask).detach()
        loss = -masked_column(out, "logprobs", batch.loss_mask)
        return LossTerm(loss=loss, metrics=metrics, unit="token")
