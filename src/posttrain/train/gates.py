"""Step-0 gates: before anything was learned, policy, sampler and reference must agree; else the set-up is wrong."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain.errors import RunError
from posttrain.types import RolloutBatch


def check_kl(batch: RolloutBatch, tolerance: float) -> None:
    """The actor starts as the reference, so every token's log-probability must be the same under both.

    Raises:
        RunError: if the mean absolute difference exceeds ``tolerance``.
    """
    if batch.ref_logprobs is None:
        return
    gap = ((batch.logprobs - batch.ref_logprobs).abs() * batch.loss_mask).sum() / batch.loss_mask.sum().clamp(min=1)
    if not float(gap) <= tolerance:
        raise RunError(
            f"Before the first update the actor already differs from its reference: mean |log-probability gap| "
            f"{float(gap):.3g} nats a token, allowed {tolerance:g}. The reference does not wear the actor's parents, "
            "or sampling and scoring use different weights, template or temperature. Check adapter_name_or_path and "
            "that model_name_or_path is the model the adapter was trained on; gate_tolerance sets the limit."
        )


def check_ratio(metrics: Mapping[str, float], tolerance: float) -> None:
    """On the first minibatch the new policy is the old one: ratio 1 and approximate KL 0.

    Raises:
        RunError: if either is off by more than ``tolerance``.
    """
    ratio, divergence = metrics.get("ratio", 1.0), metrics.get("approx_kl", 0.0)
    if not (abs(ratio - 1.0) <= tolerance and abs(divergence) <= tolerance):
        raise RunError(
            f"On the first minibatch the policy ratio is {ratio:.6g} (approximate KL {divergence:.3g}) where 1 (and 0) "
            f"is due, allowed {tolerance:g}: the log-probabilities recorded while sampling are not those of training. "
            "Dropout in an online stage, another dtype in generation, or a changed temperature do this; "
            "gate_tolerance sets the limit."
        )
