"""Kahneman-Tversky optimisation: answers judged one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from posttrain.algorithms.columns import column
from posttrain.algorithms.sides import answer_logps
from posttrain.functional import kto_kl, kto_loss
from posttrain.types import LossTerm, Outputs, Role, UnpairedBatch


@dataclass(frozen=True, kw_only=True)
class KTO:
    """Make good answers a gain and bad ones a loss, measured from how far the policy has moved on the whole.

        h = log π(y) − log π_ref(y)        z = max(0, mean over the step of log π(y') − log π_ref(y'))
        L = λ_D σ(−β (h − z)) for good answers, λ_U σ(−β (z − h)) for bad ones

    Paper: Ethayarajh et al., 2024, eq. 7 and 8 (arXiv:2402.01306). y' are answers to other prompts of the data; z is
    taken over the whole optimizer step, on all processes, however it is cut (TRL takes it over a micro-batch).

    Attributes:
        beta: β. desirable_weight, undesirable_weight: λ_D, λ_U. sft_coef: weight of the negative log-likelihood per
            token of good answers.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)
    consults: ClassVar[tuple[Role, ...]] = (Role.REFERENCE,)
    rows_together: ClassVar[int] = 1

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    sft_coef: float = 0.0

    def with_reference_point(self, batch: UnpairedBatch, mismatched_logps: torch.Tensor) -> UnpairedBatch:
        """The same step with ``kl`` filled.

        Args:
            batch: a whole step. mismatched_logps: [B] of its mismatched rows under the policy as it is now.
        """
        kl = kto_kl(mismatched_logps, column(batch, "mismatched_ref_logps"))
        return batch.with_columns(kl=kl.expand(len(batch)))

    def loss(self, role: Role, out: Outputs, batch: UnpairedBatch) -> LossTerm:
        """Loss [B]; metrics rewards/* and logps/* of both kinds, each a mean over its own rows, and kl."""
        logps, lengths = answer_logps(out, batch)  # [B]
        ref_logps, kl = column(batch, "ref_logps").to(logps.dtype), column(batch, "kl").to(logps.dtype)
        good = batch.desirable
        loss = kto_loss(
            logps,
            ref_logps,
            good,
            kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        if self.sft_coef:
            loss = loss - self.sft_coef * torch.where(good, logps / lengths, 0.0)
        rewards = self.beta * (logps - ref_logps).detach()
        metrics = {
            "rewards/accuracies": ((rewards > self.beta * kl) == good).to(loss.dtype),
            "rewards/chosen": torch.where(good, rewards, torch.nan),
            "rewards/rejected": torch.where(good, torch.nan, rewards),
            "logps/chosen": torch.where(good, logps.detach(), torch.nan),
            "logps/rejected": torch.where(good, torch.nan, logps.detach()),
            "kl": kl.detach(),
        }
        return LossTerm(loss=loss, metrics=metrics, unit="sequence")
