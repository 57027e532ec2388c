"""The actor's step that the online policy-gradient algorithms share; they differ in credit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.algorithms.columns import masked_column
from posttrain.algorithms.shaped import ShapedRewards
from posttrain.functional import cispo_loss, clipped_surrogate, kl_estimate, masked_mean, sequence_ratio_logprobs
from posttrain.types import LossTerm, Outputs, Role, RolloutBatch


@dataclass(frozen=True, kw_only=True)
class ClippedPolicy(ShapedRewards):
    """A bounded step towards what had a positive advantage.

        ρ_t = π(y_t) / π_old(y_t)                                            importance = "token"
        ρ_t = (π(y) / π_old(y))^{1/|y|}                                      importance = "sequence"
        ρ_t = π(y) / π_old(y)                                                importance = "completion"
        L_t = −min(ρ Â, clip(ρ, 1 − ε, 1 + ε_high) Â)                        policy_loss = "clip"
        L_t = max(L_t, −c Â) where Â < 0                                     dual_clip = c
        L_t = −sg(clip(ρ, 1 − ε, 1 + ε_high)) Â log π(y_t)                   policy_loss = "cispo"
        L_t ← L_t + β KL_t − c_H H_t                                         kl_in = "loss"
        L   = mean over tokens | over sequences of their mean | of their sum / budget

    Papers: clip: Schulman et al., 2017 (arXiv:1707.06347); dual clip: Ye et al., 2020 (arXiv:1912.09729); ε_high > ε
    and the mean over tokens: Yu et al., 2025, DAPO (arXiv:2503.14476); sum / budget: Liu et al., 2025, Dr. GRPO
    (arXiv:2503.20783); sequence importance: Zheng et al., 2025, GSPO (arXiv:2507.18071); cispo: MiniMax, 2025
    (arXiv:2506.13585).

    Attributes:
        clip, clip_high: ε and ε_high, which is ε where None. dual_clip: c, above 1. entropy_coef: c_H.
        importance, policy_loss: as above.
        loss_average: "token", "sequence" or "budget"; budget: the most tokens a completion may have.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)

    clip: float = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    entropy_coef: float = 0.0
    importance: Literal["token", "sequence", "completion"] = "token"
    policy_loss: Literal["clip", "cispo"] = "clip"
    loss_average: Literal["token", "sequence", "budget"] = "token"
    budget: int = 1024

    def loss(self, role: Role, out: Outputs, batch: RolloutBatch) -> LossTerm:
        """The actor's loss: [B, T] averaged over tokens, else [B]."""
        mask = batch.loss_mask
        new = masked_column(out, "logprobs", mask)
        old, advantages = (masked_column(batch, name, mask) for name in ("logprobs", "advantages"))
        loss, clipped = self._policy_loss(new, old, advantages, mask)
        metrics = {
            "ratio": torch.where(mask, torch.exp(new - old), 0.0).detach(),
            "clip_fraction": clipped.to(loss.dtype),
            "approx_kl": kl_estimate(old, new, "k3").detach(),
        }
        if out.entropy is not None or self.entropy_coef:
            entropy = masked_column(out, "entropy", mask)
            metrics["entropy"] = entropy.detach()
            loss = loss - self.entropy_coef * entropy if self.entropy_coef else loss
        if self.kl_in == "loss" and self.kl_coef:
            kl = kl_estimate(new, masked_column(batch, "ref_logprobs", mask), self.kl_estimator)
            loss = loss + self.kl_coef * kl
        return self._averaged(torch.where(mask, loss, 0.0), metrics, mask)

    def _policy_loss(self, new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        bounds = {"clip_low": self.clip, "clip_high": self.clip if self.clip_high is None else self.clip_high}
        if self.policy_loss == "cispo":
            return cispo_loss(new, old, advantages, **bounds)
        if self.importance != "token":
            normalize = self.importance == "sequence"
            new, old = sequence_ratio_logprobs(new, old, mask, normalize=normalize), torch.zeros_like(old)
        return clipped_surrogate(new, old, advantages, **bounds, dual_clip=self.dual_clip)

    def _averaged(self, loss: Tensor, metrics: Mapping[str, Tensor], mask: Tensor) -> LossTerm:
        if self.loss_average == "token":
            return LossTerm(loss=loss, metrics=metrics, unit="token")
        means = {name: masked_mean(values, mask, dim=1) for name, values in metrics.items()}
        per_sequence = masked_mean(loss, mask, dim=1) if self.loss_average == "sequence" else loss.sum(1) / self.budget
        return LossTerm(loss=per_sequence, metrics=means, unit="sequence")
