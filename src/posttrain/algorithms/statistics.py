"""What the log says about experience after credit."""

from __future__ import annotations

from typing import get_args

from posttrain.algorithms.columns import column, masked_column
from posttrain.functional import KLKind, kl_estimate, masked_mean, masked_variance
from posttrain.types import RolloutBatch


def experience_statistics(batch: RolloutBatch, kl_estimator: KLKind) -> dict[str, float]:
    """Means over a credited batch; KLs are sums over a sequence, averaged over sequences.

        explained_variance = 1 − Var(R − V) / Var(R)

    With a critic ``advantage_std`` is the deviation of R − V, the advantages before whitening. Rewards are as the
    reward gave them, neither normalised nor clipped.

    Args:
        batch: with rewards, ref_logprobs and advantages filled; values and returns where there is a critic.
        kl_estimator: which of the estimates is also called ``kl``.
    """
    mask = batch.loss_mask
    old, ref = (masked_column(batch, name, mask) for name in ("logprobs", "ref_logprobs"))
    rewards = column(batch, "rewards").float()
    kl = {kind: float(kl_estimate(old, ref, kind).sum(dim=1).mean()) for kind in get_args(KLKind)}
    return {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()) if len(rewards) > 1 else 0.0,
        "kl": kl[kl_estimator],
        **{f"kl_{kind}": kl[kind] for kind in ("k1", "k2", "k3")},
        **_credit_statistics(batch),
        "response_length": float(mask.sum(dim=1).float().mean()),
        "ended_share": float(batch.ended.float().mean()),
    }


def _credit_statistics(batch: RolloutBatch) -> dict[str, float]:
    mask = batch.loss_mask
    if batch.values is None:
        found = {"advantage_std": float(masked_variance(masked_column(batch, "advantages", mask), mask)) ** 0.5}
        trains = batch.trains
        return found if trains is None else {**found, "trained_share": float(trains.float().mean())}
    values, returns = (masked_column(batch, name, mask) for name in ("values", "returns"))
    return_variance = float(masked_variance(returns, mask))
    error_variance = float(masked_variance(returns - values, mask))
    return {
        "explained_variance": 1 - error_variance / return_variance if return_variance > 0 else 0.0,
        "value_mean": float(masked_mean(values, mask)),
        "return_mean": float(masked_mean(returns, mask)),
        "advantage_std": error_variance**0.5,
    }
