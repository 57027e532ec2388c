"""DPO on pairs that the policy has just written itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from posttrain.algorithms.columns import masked_column
from posttrain.algorithms.shaped import ShapedRewards, over_tokens
from posttrain.functional import DPOKind, dpo_loss, masked_mean
from posttrain.types import AlgorithmState, LossTerm, Outputs, Role, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class OnlineDPO(ShapedRewards):
    """The best and the worst of a prompt's completions, by the reward, are a preference pair.

        L = ℓ(β (log π(y_b) − log π_ref(y_b) − log π(y_w) + log π_ref(y_w)))        ℓ as in DPO

    Paper: Guo et al., 2024 (arXiv:2402.04792), which samples two completions; with more of them the extremes are
    paired. Where all scores of a prompt are equal there is no pair, and it does not train.

    Attributes:
        beta: β. pref_loss: ℓ. label_smoothing: share of pairs that the reward is taken to get wrong.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)
    rows_together: ClassVar[int] = 2

    kl_coef: float = 0.0
    group_size: int = 2
    beta: float = 0.1
    pref_loss: DPOKind = "sigmoid"
    label_smoothing: float = 0.0

    @property
    def trained_group(self) -> int:
        """The two rows of a pair."""
        return 2

    def credit(self, batch: RolloutBatch, state: AlgorithmState) -> tuple[RolloutBatch, AlgorithmState]:
        """Choose ``trains`` [B]; ``advantages`` are 1 on the best completion of a prompt and −1 on the worst."""
        scores, moved = self.scores(batch, state)
        rewards = self.sequence_rewards(scores, batch, state).reshape(-1, self.group_size)  # [P, G]
        rows = torch.arange(len(rewards), device=rewards.device)
        signs = torch.zeros_like(rewards)
        signs[rows, rewards.argmax(dim=1)] = 1.0
        signs[rows, rewards.argmin(dim=1)] = -1.0
        signs = torch.where((rewards.amax(dim=1) > rewards.amin(dim=1))[:, None], signs, 0.0).reshape(-1)  # [B]
        filled = over_tokens(signs, batch.loss_mask)
        return batch.with_columns(advantages=filled, trains=signs != 0), self.moved_on(moved, batch)

    def loss(self, role: Role, out: Outputs, batch: RolloutBatch) -> LossTerm:
        """Loss [P] of pairs of neighbouring rows, the better one first or second."""
        mask = batch.loss_mask
        logps = masked_column(out, "logprobs", mask).sum(dim=1)  # [B]
        ref_logps = masked_column(batch, "ref_logprobs", mask).sum(dim=1)
        better = masked_column(batch, "advantages", mask).sum(dim=1) > 0
        chosen, rejected = better.nonzero().squeeze(1), (~better).nonzero().squeeze(1)  # [P] in the order of pairs
        pairs = (logps[chosen], logps[rejected], ref_logps[chosen], ref_logps[rejected])
        loss = dpo_loss(*pairs, beta=self.beta, kind=self.pref_loss, label_smoothing=self.label_smoothing)
        margin = self.beta * (pairs[0] - pairs[2] - pairs[1] + pairs[3]).detach()
        metrics = {"rewards/margins": margin, "rewards/accuracies": (margin > 0).to(loss.dtype)}
        if out.entropy is not None:
            entropy = masked_mean(masked_column(out, "entropy", mask).detach(), mask, dim=1)  # [B] per token
            metrics["entropy"] = entropy.reshape(-1, 2).mean(dim=1)
        return LossTerm(loss=loss, metrics=metrics, unit="pair")
