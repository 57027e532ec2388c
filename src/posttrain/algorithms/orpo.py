"""Odds-ratio preference optimisation: fine-tuning and preference in one step, without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.algorithms.sides import answer_logps, side_metrics
from posttrain.functional import odds_ratio_loss
from posttrain.types import LossTerm, Outputs, PreferenceBatch, Role


@dataclass(frozen=True, kw_only=True)
class ORPO:
    """Imitate the chosen answer, and make its odds exceed those of the rejected one.

        p = exp(1/|y| log π(y))        L = −1/|y_c| log π(y_c) − β log σ(log p_c/(1 − p_c) − log p_r/(1 − p_r))

    Paper: Hong et al., 2024, eq. 6 (arXiv:2403.07691), whose λ is β here as in TRL and LLaMA-Factory.

    Attributes:
        beta: β. sft_coef: weight of more imitation on top.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)
    consults: ClassVar[tuple[Role, ...]] = ()
    rows_together: ClassVar[int] = 2

    beta: float = 0.1
    sft_coef: float = 0.0

    def loss(self, role: Role, out: Outputs, batch: PreferenceBatch) -> LossTerm:
        """Loss [P]; metrics as DPO's, and odds_ratio_loss."""
        logps, lengths = answer_logps(out, batch)  # [2 P]
        means = logps / lengths
        odds = odds_ratio_loss(means[0::2], means[1::2])
        loss = self.beta * odds - (1 + self.sft_coef) * means[0::2]
        metrics = side_metrics(self.beta * means[0::2], self.beta * means[1::2], logps, lengths)
        return LossTerm(loss=loss, metrics={**metrics, "odds_ratio_loss": odds.detach()}, unit="pair")
