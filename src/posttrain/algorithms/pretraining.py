"""The language-modelling loss that is mixed into reinforcement learning, so that the policy does not forget."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.algorithms.sft import SFT
from posttrain.types import Batch, LossTerm, Outputs, Role


@dataclass(frozen=True, kw_only=True)
class PretrainingLoss(SFT):
    """The language-modelling loss with a weight.

        L_t = −γ log π(x_t | x_<t)

    Paper: Ouyang et al., 2022, eq. 2, PPO-ptx (arXiv:2203.02155).

    Attributes:
        coef: γ.
    """

    coef: float = 1.0

    def loss(self, role: Role, out: Outputs, batch: Batch) -> LossTerm:
        """Loss [B, T] per token; metric ptx_loss, without the weight."""
        term = super().loss(role, out, batch)
        return LossTerm(loss=self.coef * term.loss, metrics={"ptx_loss": term.loss.detach()}, unit="token")
