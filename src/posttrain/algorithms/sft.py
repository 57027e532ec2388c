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

    Pretraining is the same loss with every token in the mask. With ``use_dft_loss`` each token's loss is weighed by its
    own probability, −sg(π) log π, which takes the inverse probability out of the gradient that makes rare tokens count
    most: Wu et al., 2025 (arXiv:2508.05629). The plain loss is then logged as ``nll``.

    Attributes:
        use_dft_loss: weigh by probability.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)
    consults: ClassVar[tuple[Role, ...]] = ()
    rows_together: ClassVar[int] = 1

    use_dft_loss: bool = False

    def loss(self, role: Role, out: Outputs, batch: Batch) -> LossTerm:
        """Negative log-likelihood [B, T] per trained token; logs the entropy where the role gave one."""
        loss = -masked_column(out, "logprobs", batch.loss_mask)
        metrics = {}
        if self.use_dft_loss:
            metrics["nll"] = loss.detach()
            loss = loss * (-loss.detach()).exp()
        if out.entropy is not None:
            metrics["entropy"] = masked_column(out, "entropy", batch.loss_mask).detach()
        return LossTerm(loss=loss, metrics=metrics, unit="token")
