"""A reward model from pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.algorithms.columns import column
from posttrain.functional import bradley_terry_loss, ranking_pairs
from posttrain.types import LossTerm, Outputs, PreferenceBatch, RankingBatch, Role


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """Score the chosen answer above the rejected one.

        L = −log σ(r_c − r_r − margin) + c (r_c + r_r)²

    Papers: Ouyang et al., 2022, eq. 1 (arXiv:2203.02155); margin: Touvron et al., 2023, eq. 2 (arXiv:2307.09288);
    centring: Eisenstein et al., 2023 (arXiv:2312.09244). Pairs alone leave a constant open that could be added to every
    score; the centring term holds it near 0. Of a ranking of K answers all K (K − 1) / 2 pairs count, their mean as
    much as one pair, as in Ouyang et al.; pairs that stand in rows of their own count the same, however many of them
    share a prompt.

    Attributes:
        center_rewards_coef: c.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.REWARD,)
    consults: ClassVar[tuple[Role, ...]] = ()
    rows_together: ClassVar[int] = 2

    center_rewards_coef: float = 0.0

    def loss(self, role: Role, out: Outputs, batch: PreferenceBatch | RankingBatch) -> LossTerm:
        """Loss [P] of pairs, [B] of rankings; metrics accuracy (a tie is no win), margin, chosen and rejected_score."""
        scores = column(out, "scores")
        if isinstance(batch, RankingBatch):
            return self._ranking_loss(scores, batch)
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

    def _ranking_loss(self, scores: Tensor, batch: RankingBatch) -> LossTerm:
        """Every pair of a ranking from one forward of each answer, on the row of its better side."""
        better, worse = ranking_pairs([len(unit) for unit in batch.units(1)], device=scores.device)[0].unbind(1)
        chosen, rejected = scores[better], scores[worse]  # [P]
        loss = bradley_terry_loss(chosen, rejected) + self.center_rewards_coef * (chosen + rejected).square()
        per_row = torch.zeros_like(scores).index_add(0, better, loss * batch.weight[better])
        chosen, rejected = chosen.detach(), rejected.detach()
        count = torch.zeros_like(scores).index_add(0, better, torch.ones_like(chosen))

        def mean(values: Tensor) -> Tensor:
            """Over the pairs in which a row is the better side; NaN for the last of a ranking."""
            return torch.zeros_like(scores).index_add(0, better, values) / torch.where(count > 0, count, torch.nan)

        metrics = {
            "accuracy": mean((chosen > rejected).to(loss.dtype)),
            "margin": mean(chosen - rejected),
            "chosen_score": mean(chosen),
            "rejected_score": mean(rejected),
        }
        return LossTerm(loss=per_row, metrics=metrics, unit="sequence")
