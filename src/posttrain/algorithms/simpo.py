"""Simple preference optimisation: the mean log-probability of a token as the reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.algorithms.sides import answer_logps, side_metrics
from posttrain.functional import simpo_loss
from posttrain.types import LossTerm, Outputs, PreferenceBatch, Role


@dataclass(frozen=True, kw_only=True)
class SimPO:
    """Make the tokens of the chosen answer likelier than those of the rejected one, by a margin; no reference.

        L = −log σ(β/|y_c| log π(y_c) − β/|y_r| log π(y_r) − γ) − α 1/|y_c| log π(y_c)

    Paper: Meng et al., 2024, eq. 6 (arXiv:2405.14734); with α it is the CPO-SimPO of its authors' code.

    Attributes:
        beta: β; 2 to 10 is usual. simpo_gamma: γ, as in LLaMA-Factory. sft_coef: α.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)
    consults: ClassVar[tuple[Role, ...]] = ()
    rows_together: ClassVar[int] = 2

    beta: float = 2.0
    simpo_gamma: float = 0.5
    sft_coef: float = 0.0

    def loss(self, role: Role, out: Outputs, batch: PreferenceBatch) -> LossTerm:
        """Loss [P]; metrics as DPO's."""
        logps, lengths = answer_logps(out, batch)  # [2 P]
        means = logps / lengths
        chosen, rejected = means[0::2], means[1::2]
        loss = simpo_loss(chosen, rejected, beta=self.beta, gamma=self.simpo_gamma) - self.sft_coef * chosen
        metrics = side_metrics(self.beta * chosen, self.beta * rejected, logps, lengths)
        return LossTerm(loss=loss, metrics=metrics, unit="pair")
