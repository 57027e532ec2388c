"""Pure tensor maths: torch only, no configuration, no files, no state."""

from posttrain.functional.advantages import gae, group_relative, leave_one_out
from posttrain.functional.kl import KLKind, kl_estimate
from posttrain.functional.logprobs import token_logprobs
from posttrain.functional.masked import masked_mean, masked_variance, whiten
from posttrain.functional.policy import clipped_surrogate, clipped_value_loss
from posttrain.functional.preference import DPOKind, bradley_terry_loss, dpo_loss

__all__ = [
    "DPOKind",
    "KLKind",
    "bradley_terry_loss",
    "clipped_surrogate",
    "clipped_value_loss",
    "dpo_loss",
    "gae",
    "group_relative",
    "kl_estimate",
    "leave_one_out",
    "masked_mean",
    "masked_variance",
    "token_logprobs",
    "whiten",
]
