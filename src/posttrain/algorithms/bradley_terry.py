"""A reward model from pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.algorithms.columns import column
from posttrain.functional import bradley_terry_loss
from posttrain.types import LossTerm, Outputs, PreferenceBatch, Role


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """Score the chosen answer above the rejected one.

        L = −log σ(r_c − r_r − margin) + c (r_c + r_r)²

    Papers: Ouyang et al., 2022, eq. 1 (arXiv:2203.02155); margin: Touvron et al., 2023, eq. 2 (arXiv:2307.09288);
    centring: Eisenstein et al., 2023 (arXiv:2312.09244). Pairs alone leave a constant open that could be added to every
    score; the centring term holds it near 0. Unlike Ouyang et al., every pair counts the same, however many pairs
    its prompt has.

    Attributes:
        center_rewards_coef: c.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.REWARD,)
    consults: ClassVar[tuple[Role, ...]] = ()
    rows_together: ClassVar[int] = 2

    center_rewards_coef: float = 0.0

    def loss(self, role: Role, out: Outputs, batch: PreferenceBatch) -> LossTerm:
        """Loss [P]; metrics accuracy (a tie is no win), margin, chosen_score and rejected_score."""
        scores = column(out, "scores")
        chosen, rejected = scores[0::2], scores[1::2]  # [P]
        loss = bradley_terry_loss(chosen, rejected, batch.margins)
        if self.center_rewards_coef:
            loss = loss + self.center_rewards_coef * (chosen + rejected).square()
        chosen, rejected = chosen.detach(), rejected.detach()
        metrics = {
            "accuracy": (chosen > rejected).to(loss.dtype),
            "margin": chosen - rejected,
            "chosen_score": chosen,
            "rejected_score": rejected,
        }
        return LossTerm(loss=loss, metrics=metrics, unit="pair")
