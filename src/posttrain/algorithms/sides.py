"""Whole answers as the preference losses read them, and what the log says about them."""

from __future__ import annotations

from torch import Tensor

from posttrain.algorithms.columns import masked_column
from posttrain.types import Batch, Outputs


def answer_logps(out: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer, summed over its tokens [B], and the number of those tokens [B], at least 1."""
    logps = masked_column(out, "logprobs", batch.loss_mask).sum(dim=1)
    return logps, batch.loss_mask[:, 1:].sum(dim=1).clamp(min=1).to(logps.dtype)


def side_metrics(chosen: Tensor, rejected: Tensor, logps: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Metrics [P] under the names that users of TRL and LLaMA-Factory know.

    Args:
        chosen: [P] implicit reward of the chosen answers. rejected: [P].
        logps: [2 P] log-probability of all answers. lengths: [2 P] their tokens.
    """
    chosen, rejected, logps = chosen.detach(), rejected.detach(), logps.detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "rewards/margins": chosen - rejected,
        "logps/chosen": logps[0::2],
        "logps/rejected": logps[1::2],
        "sft_loss": -logps[0::2] / lengths[0::2],
    }
