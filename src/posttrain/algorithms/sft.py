"""Maximum likelihood: supervised fine-tuning and pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.algorithms.columns import masked_column
from posttrain.types import Batch, LossTerm, Outputs, Role


@dataclass(frozen=True, kw_only=True)
class SFT:
    """Make the trained tokens likely; which tokens those are is the data's ``loss_mask``.

        L_t = −log π(y_t | y_<t)

    Pretraining is the same loss with every token in the mask.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)
    consults: ClassVar[tuple[Role, ...]] = ()
    rows_together: ClassVar[int] = 1

    def loss(self, role: Role, out: Outputs, batch: Batch) -> LossTerm:
        """Negative log-likelihood [B, T] per trained token; logs the entropy where the role gave one."""
        loss = -masked_column(out, "logprobs", batch.loss_mask)
        metrics = {}
        if out.entropy is not None:
            metrics["entropy"] = masked_column(out, "entropy", batch.loss_mask).detach()
        return LossTerm(loss=loss, metrics=metrics, unit="token")
