"""Contrastive preference optimisation: DPO without a reference, held by imitation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.algorithms.sides import answer_logps, side_metrics
from posttrain.functional import cpo_loss
from posttrain.types import LossTerm, Outputs, PreferenceBatch, Role


@dataclass(frozen=True, kw_only=True)
class CPO:
    """Make the chosen answer likelier than the rejected one, and likely at all.

        L = −log σ(β (log π(y_c) − log π(y_r))) − α 1/|y_c| log π(y_c)

    Paper: Xu et al., 2024, eq. 3 and 6 (arXiv:2401.08417). The second term is a mean over the tokens of each answer.
    TRL takes its mean over the tokens of the batch, which is the same where answers are equally long.

    Attributes:
        beta: β. sft_coef: α. label_smoothing: share of pairs that are taken to be flipped.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)
    consults: ClassVar[tuple[Role, ...]] = ()
    rows_together: ClassVar[int] = 2

    beta: float = 0.1
    sft_coef: float = 1.0
    label_smoothing: float = 0.0

    def loss(self, role: Role, out: Outputs, batch: PreferenceBatch) -> LossTerm:
        """Loss [P]; metrics as DPO's."""
        logps, lengths = answer_logps(out, batch)  # [2 P]
        chosen, rejected = logps[0::2], logps[1::2]
        loss = cpo_loss(chosen, rejected, beta=self.beta, label_smoothing=self.label_smoothing)
        loss = loss - self.sft_coef * chosen / lengths[0::2]
        metrics = side_metrics(self.beta * chosen, self.beta * rejected, logps, lengths)
        return LossTerm(loss=loss, metrics=metrics, unit="pair")
