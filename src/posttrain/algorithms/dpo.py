"""Direct preference optimisation, in the shapes that its loss has been given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.algorithms.columns import column
from posttrain.algorithms.sides import answer_logps, side_metrics
from posttrain.functional import DPOKind, dpo_loss
from posttrain.types import LossTerm, Outputs, PreferenceBatch, Role


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Make the chosen answer likelier than the rejected one, measured from where the policy began.

        h = log π(y_c) − log π_ref(y_c) − log π(y_r) + log π_ref(y_r)
        L = ℓ(β h) − α 1/|y_c| log π(y_c)                                     ℓ = −log σ, or as ``pref_loss`` says

    Paper: Rafailov et al., 2023, eq. 7 (arXiv:2305.18290); other ℓ: ``dpo_loss``; the term of α: Pang et al., 2024
    (arXiv:2404.19733). ipo compares means over tokens, as TRL and LLaMA-Factory do. The reference is the policy
    as it started; its log-probabilities are measured once and stand in ``ref_logps``.

    Attributes:
        beta: β. pref_loss: ℓ. sft_coef: α. label_smoothing: share of pairs that are taken to be flipped.
    """

    trains: ClassVar[tuple[Role, ...]] = (Role.ACTOR,)
    consults: ClassVar[tuple[Role, ...]] = (Role.REFERENCE,)
    rows_together: ClassVar[int] = 2

    beta: float = 0.1
    pref_loss: DPOKind = "sigmoid"
    sft_coef: float = 0.0
    label_smoothing: float = 0.0

    def loss(self, role: Role, out: Outputs, batch: PreferenceBatch) -> LossTerm:
        """Loss [P]; metrics rewards/*, logps/* and sft_loss, the mean loss of a chosen token."""
        logps, lengths = answer_logps(out, batch)  # [2 P]
        ref_logps = column(batch, "ref_logps").to(logps.dtype)
        shares = lengths if self.pref_loss == "ipo" else 1.0
        policy, reference = logps / shares, ref_logps / shares
        loss = dpo_loss(
            policy[0::2],
            policy[1::2],
            reference[0::2],
            reference[1::2],
            beta=self.beta,
            kind=self.pref_loss,
            label_smoothing=self.label_smoothing,
        )
        if self.sft_coef:
            loss = loss - self.sft_coef * logps[0::2] / lengths[0::2]
        rewards = self.beta * (policy - reference)
        return LossTerm(loss=loss, metrics=side_metrics(rewards[0::2], rewards[1::2], logps, lengths), unit="pair")
