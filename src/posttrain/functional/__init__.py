"""Pure tensor maths: torch only, no configuration, no files, no state."""

from posttrain.functional.advantages import discounted_returns, gae, group_relative, leave_one_out
from posttrain.functional.kl import KLKind, kl_estimate
from posttrain.functional.logprobs import most_probable, token_logprobs
from posttrain.functional.masked import masked_mean, masked_variance, whiten
from posttrain.functional.noise import embedding_noise
from posttrain.functional.policy import cispo_loss, clipped_surrogate, clipped_value_loss, sequence_ratio_logprobs
from posttrain.functional.preference import (
    CPOKind,
    DPOKind,
    bradley_terry_loss,
    cpo_loss,
    dpo_loss,
    odds_ratio_loss,
    ranking_pairs,
    simpo_loss,
)
from posttrain.functional.unpaired import kto_kl, kto_loss

__all__ = [
    "CPOKind",
    "DPOKind",
    "KLKind",
    "bradley_terry_loss",
    "cispo_loss",
    "clipped_surrogate",
    "clipped_value_loss",
    "cpo_loss",
    "discounted_returns",
    "dpo_loss",
    "embedding_noise",
    "gae",
    "group_relative",
    "kl_estimate",
    "kto_kl",
    "kto_loss",
    "leave_one_out",
    "masked_mean",
    "masked_variance",
    "most_probable",
    "odds_ratio_loss",
    "ranking_pairs",
    "sequence_ratio_logprobs",
    "simpo_loss",
    "token_logprobs",
    "whiten",
]
